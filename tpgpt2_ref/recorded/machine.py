"""The machine card: which machine, links, versions and environment a recorded run is of. Imports no torch by itself."""
from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from .nvml import machine_links


def machine_card() -> dict:
    """This machine as a result must name it: processor or GPUs, their links, versions, environment that matters."""
    card = {"slug": "", "kind": "cpu", "device": _cpu_name(), "count": cores(),
            "links": "none", "cpu": _cpu_name(), "torch": None, "cuda": None, "nccl": None, "driver": None,
            "python": platform.python_version(), "environment": _environment()}
    try:
        import torch
    except ImportError:
        torch = None
    if torch is not None:
        card["torch"] = torch.__version__
        if torch.cuda.is_available():
            card.update(kind="cuda", device=torch.cuda.get_device_name(0), count=torch.cuda.device_count(),
                        cuda=torch.version.cuda, nccl=".".join(map(str, torch.cuda.nccl.version())),
                        **machine_links())
    n, device = card["count"], card["device"]
    name = f"{n}x {device}" if card["kind"] == "cuda" else f"cpu {device} {n} cores"
    card["slug"] = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return card


def cores() -> int:
    """Cores that this process may use; all of the machine where the system doesn't say (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The checkout's commit, "+" behind it if the package differs from it; "unknown" outside git."""
    def git(*args):
        return subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20)

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        if head.returncode:
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "..").stdout.strip()
        return head.stdout.strip() + ("+" if changed else "")
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def _environment() -> dict[str, str]:
    """The variables that change how fast a collective or a kernel is."""
    matters = ("NCCL_", "GLOO_", "TPGPT2_", "TORCH_SYMM_MEM", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_",
               "VLLM_ATTENTION_BACKEND")
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(matters) and k != "NCCL_VERSION"}


def _cpu_name() -> str:
    try:
        return re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()).group(1).strip()
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()

"""Start N ranks of a command on this machine, and stop them all when one fails.

What torchrun does, for one host: each rank is a process with torchrun's variables. A rank that dies takes the
others with it within seconds, and the message names it. They meet in a private folder, not on a port, which is their
temporary folder too. Neither they nor the folder outlive this process, however it ends.
"""
from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ..errors import RankError, UserError
from .board import Board
from .private import PrivateFolder, removed_if_killed
from .times import mark
from .torchrun import rank_env, share_gpu

RANK_BYTES = 150 << 20  # what a process with torch takes, before it holds any model
GRACE = 3.0  # seconds that the others get to end by themselves once one rank has failed


def gpu_count() -> int:
    """GPUs that CUDA shows this process, without importing torch."""
    try:
        cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return 0
    return count.value if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def open_gpu(local_rank: int) -> None:
    """Make the context of this rank's GPU in the background, which takes long, while the process imports what it needs.

    torch finds it made: it is the one context that a process has on a GPU. Whatever is wrong torch will say.
    """
    def make():
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if gpus := gpu_count():
            cuda = ctypes.CDLL("libcuda.so.1")
            if cuda.cuDeviceGet(ctypes.byref(device), local_rank % gpus) == 0:
                cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
                mark(f"has a context on GPU {local_rank % gpus}")

    threading.Thread(target=make, daemon=True, name="GPU").start()


def check_size(size: int, device: str) -> None:
    """Refuse a TP size that this machine can't run."""
    if size < 1:
        raise UserError(f"--tp must be at least 1, not {size}")
    if device == "cuda":
        gpus = gpu_count()
        if gpus == 0:
            raise UserError("--device cuda, but this machine has no usable NVIDIA GPU: use --device cpu "
                            "(`python -m tpgpt2_ref doctor` says what is missing)")
        if size > gpus and not share_gpu():
            raise UserError(f"--tp {size} needs {size} GPUs, this machine has {gpus}: lower --tp, or use --device cpu")
    check_memory(size, f"--tp {size}")


def check_memory(size: int, asked: str) -> None:
    """Refuse more rank processes than the memory that is free now holds, where the system says how much that is."""
    try:
        available = int(re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) << 10
    except (OSError, TypeError):
        return
    if size > (most := max(1, available // RANK_BYTES)):
        raise UserError(f"{asked}: a rank is a process of {RANK_BYTES >> 20} MB at least, and this machine has "
                        f"memory for {most} now")


def launch(argv: list[str], size: int, env: dict[str, str] | None = None, module: str | None = "tpgpt2_ref",
           timeout: float | None = None, check: bool = False) -> None:
    """Run `python -m tpgpt2_ref ARGV` as `size` ranks. Rank 0 has this process's stdout and stderr.

    env      added to every rank's environment
    module   another module to run; None: ARGV goes to Python itself
    timeout  seconds after which ranks still running are stopped
    check    the ranks agree on every collective before data moves (`board.py`)
    Raises UserError if the ranks ended with status 2 (they have said why), RankError naming the rank that failed.
    """
    program = [sys.executable, *(["-m", module] if module else []), *argv]
    folder, logs, ranks = PrivateFolder(), [], []
    if check:
        Board.create(folder.path, size)
    with removed_if_killed(folder.path) as and_ends:
        try:
            for rank in range(size):
                logs.append(None if rank == 0 else tempfile.TemporaryFile("w+"))
                ranks.append(subprocess.Popen(
                    program, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                    env={**os.environ, **rank_env(rank, size, folder.path), **(env or {})},
                    stdout=None if rank == 0 else subprocess.DEVNULL, stderr=logs[rank]))
                and_ends(ranks[rank].pid)
            mark("ranks started")
            _wait(ranks, logs, timeout)
        finally:
            mark("ranks ended")
            for p in ranks:
                p.kill()
            for p in ranks:
                p.wait()
            folder.remove()


def leave(status: int) -> None:
    """End this process. A rank that `launch` started ends at once: its group is closed, and the end of an interpreter
    that has torch takes half a second, on a GPU more, and saves nothing."""
    if "RANKS_MEET_IN" not in os.environ:
        sys.exit(status)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _wait(ranks: list[subprocess.Popen], logs: list, timeout: float | None) -> None:
    end = time.monotonic() + (timeout or float("inf"))
    while None in (states := [p.poll() for p in ranks]) and not any(states):
        if time.monotonic() > end:
            late = ", ".join(str(r) for r, state in enumerate(states) if state is None)
            raise RankError(f"rank {late} still running after {timeout:.0f} s: stopped")
        time.sleep(0.02)
    failed = [r for r, state in enumerate(states) if state]
    if not failed:
        return
    first, deadline = min(failed, key=lambda r: ranks[r].returncode >= 0), time.monotonic() + GRACE  # the killed first
    while None in [p.poll() for p in ranks] and time.monotonic() < deadline:
        time.sleep(0.02)
    status = ranks[first].returncode
    if status == 2:
        if first == 0 or ranks[0].returncode == 2:
            raise UserError("")  # rank 0 has printed it
        raise UserError(_last_line(logs[first]).removeprefix("error: "))
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
    why = f": {_last_line(logs[first]).removeprefix('error: ')}" if first and status > 0 else ""
    raise RankError(f"rank {first} {how}{why}; the other ranks were stopped")


def _last_line(log) -> str:
    log.seek(0)
    lines = [line for line in log.read().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _die_with_parent():
    """On Linux; elsewhere the janitor does it."""
    getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

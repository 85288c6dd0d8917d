"""What this machine can run and what it can't, with the reason and the next step.

Looks at Python, torch, the GPUs and what links them, NCCL and every attention backend, then lets two ranks sum
1 KB with a deadline, over gloo and, where there are two GPUs, over NCCL.
"""
from __future__ import annotations

import platform
import sys
import time

from ..errors import RankError, UserError
from ..parallel.all_reduce import explain
from ..parallel.launch import gpu_count, launch
from ..recorded.nvml import gpu_links

HELP = "what this machine can run, what it can't, and why"
TOKEN_BYTES = 1536  # what one token sums in GPT-2 small, in bf16
DEADLINE = 60.0  # seconds for two ranks to start, import torch, meet and sum


def add_arguments(parser):
    pass


def run(args, world) -> dict:
    import torch

    from ..kernels.clusters.nvrtc import why_not

    cuda = torch.cuda.is_available()
    gpus = [{"index": i, "name": p.name, "capability": f"{p.major}.{p.minor}", "memory_gb": round(p.total_memory / 1e9)}
            for i, p in ((i, torch.cuda.get_device_properties(i)) for i in range(gpu_count() if cuda else 0))]
    return {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
            "gpus": gpus, "links": links(), "p2p": p2p(len(gpus)), "advice": advice(torch, len(gpus)),
            "backends": backends("cuda" if cuda else "cpu"),
            "clusters": why_not(torch.device("cuda" if cuda else "cpu")),
            "sums": explain(len(gpus), TOKEN_BYTES) if len(gpus) > 1 else {},
            "two_ranks": {device: two_ranks(device) for device in (["cpu", "cuda"] if len(gpus) > 1 else ["cpu"])}}


def show(result: dict) -> str:
    lines = [f"Python {result['python']}, torch {result['torch']}, CUDA {result['cuda'] or 'none'}, "
             f"NCCL {result['nccl'] or 'none'}"]
    lines += [f"GPU {g['index']}: {g['name']}, SM {g['capability']}, {g['memory_gb']} GB" for g in result["gpus"]]
    links = result["links"]
    lines += [f"links: {links}"] if isinstance(links, str) else \
        [f"GPU {r['a']} - GPU {r['b']}: {r['link']}, {r['lanes']} lanes, {r['one_way_gb_per_s']} GB/s one way"
         for r in links]
    lines += [f"P2P {pair}: {'yes' if can else 'no, data goes through host memory'}"
              for pair, can in result["p2p"].items()]
    lines += ["", "attention backends (GPT-2: head size 64, pages of 16):"]
    lines += [f"  {'yes' if row['runs'] else 'no ':<3}  {name:<15} {row['why']}"
              for name, row in result["backends"].items()]
    why = result["clusters"]
    lines += ["", f"decode steps of two kernels a layer: {'no, ' + why if why else 'yes'}"]
    lines += ["", "sums, by preference, where ranks reach each other's memory:"] * bool(result["sums"])
    lines += [f"  {name:<9} {why}" for name, why in result["sums"].items()]
    lines += ["", *(f"two ranks, {device}: {row['why']}" for device, row in result["two_ranks"].items())]
    return "\n".join([*lines, "", *result["advice"]])


def links():
    """Rows of `gpu_links`, or one line on why there are none."""
    try:
        return gpu_links() or "one GPU: nothing to link"
    except UserError as e:
        return str(e)


def p2p(gpus: int) -> dict[str, bool]:
    """Which pairs of GPUs can read each other's memory."""
    import torch

    return {f"GPU {a} - GPU {b}": torch.cuda.can_device_access_peer(a, b)
            for a in range(gpus) for b in range(a + 1, gpus)}


def backends(device: str) -> dict[str, dict]:
    """{name: runs, why} of every attention backend, each asked for by name."""
    from ..attention.matrix import MATRIX
    from ..attention.platform import this_machine
    from ..attention.selector import get_attn_backend

    machine = this_machine(device)
    dtype = machine.default_dtype
    best = get_attn_backend(12, 64, dtype, platform=machine).backend
    rows = {}
    for name in MATRIX:
        try:
            get_attn_backend(12, 64, dtype, force=name, platform=machine)
            rows[name] = {"runs": True, "why": f"{MATRIX[name].note}{' <- chosen here' if name == best else ''}"}
        except UserError as e:
            rows[name] = {"runs": False, "why": str(e).partition(f"{name}: ")[2] or str(e)}
    return rows


def two_ranks(device: str) -> dict:
    """Start two ranks and sum 1 KB, or say what went wrong within the deadline."""
    program, start = f"from {__name__} import one_rank; one_rank({device!r})", time.perf_counter()
    try:
        launch(["-c", program], 2, timeout=DEADLINE, module=None)
    except (RankError, UserError) as e:
        return {"ok": False, "why": f"no: {e}"}
    return {"ok": True, "why": f"summed 1 KB, {time.perf_counter() - start:.1f} s with the start of both ranks"}


def one_rank(device: str) -> None:
    """What each of the two ranks runs."""
    import torch

    from ..parallel.collectives import all_reduce
    from ..parallel.world import World

    with World.join(device, timeout=DEADLINE / 2) as world:
        got = all_reduce(torch.full((256,), world.rank + 1.0, device=world.device), world)
        if not torch.equal(got.cpu(), torch.full((256,), 3.0)):
            raise RankError(f"rank {world.rank}: 1 + 2 summed to {got[0].item()}")


def advice(torch, gpus: int) -> list[str]:
    """What to do next, for what is missing."""
    said = []
    if gpus == 0:
        driver = gpu_count() > 0
        said.append("No GPU is usable: " + (
            f"the driver shows {gpu_count()}, but torch {torch.__version__} can't use it: install a CUDA build of torch"
            if driver else "no NVIDIA driver or no GPU here. Everything but the kernels runs on CPU with gloo"))
    elif gpus == 1:
        said.append("One GPU: TP=1 on it, TP=2 on CPU with --device cpu. TPGPT2_SHARE_GPU=1 lets two ranks share it, "
                    "to see that they agree, not how fast they are")
    if sys.version_info < (3, 11):
        said.append("Python 3.11 or newer is needed")
    return said

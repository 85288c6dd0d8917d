"""What collectives are made of: a message from one rank to another, and memory that every rank of a host can read.

The model needs neither: it calls `collectives.py`. The exercises build collectives out of these two.
"""
from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from .all_reduce.symmetric import rendezvous, unreachable
from .collectives import barrier, gather_objects
from .private import removed_if_killed


def exchange(x: torch.Tensor, to: int, source: int, world) -> torch.Tensor:
    """Send x to rank `to` while a tensor like x comes from rank `source`: (...) -> (...).

    Every rank must call it, or the one that waits for a message waits for ever.
    """
    x, got = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    sends = [dist.P2POp(dist.isend, x, to, world.group), dist.P2POp(dist.irecv, got, source, world.group)]
    for work in dist.batch_isend_irecv(sends):
        work.wait()
    return got


def shared_tensors(world, numel: int):
    """One fp32 tensor (numel,) a rank, which all ranks of this host read: (tensors by rank, a barrier to call).

    GPUs that reach one another share their own memory (torch's symmetric memory); otherwise it is the host's.
    """
    if unreachable(world) is not None:
        return host_tensors(world, numel), lambda: barrier(world)
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    import torch.distributed._symmetric_memory as symm_mem

    handle = rendezvous(symm_mem.empty(numel, dtype=torch.float32, device=world.device), world)
    return [handle.get_buffer(r, (numel,), torch.float32) for r in range(world.size)], handle.barrier


def host_tensors(world, numel: int) -> list[torch.Tensor]:
    """One fp32 tensor (numel,) of zeros a rank, by rank, in host memory that all ranks map."""
    folder = gather_objects(tempfile.mkdtemp(prefix="tpgpt2-shared-") if world.rank == 0 else "", world)[0]
    paths = [Path(folder, str(r)) for r in range(world.size)]
    with removed_if_killed(Path(folder)):
        mine = torch.from_file(str(paths[world.rank]), shared=True, size=numel)
        barrier(world)  # every file has its length
        tensors = [mine if r == world.rank else torch.from_file(str(p), shared=True, size=numel)
                   for r, p in enumerate(paths)]
        barrier(world)  # everybody has everything mapped: the names can go, the memory stays
        paths[world.rank].unlink()
        barrier(world)
        if world.rank == 0:
            Path(folder).rmdir()
    return tensors

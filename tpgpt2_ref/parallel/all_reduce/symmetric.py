"""GPU memory that every rank of one host reads and writes directly: the ground of `push`, `one_shot`, `two_shot`.

Each rank allocates the same number of bytes and exchanges handles (torch's symmetric memory, over CUDA's virtual
memory management); from then on a peer's buffer is an ordinary address, and a load or a store goes over NVLink.
"""
from __future__ import annotations

import os
import socket
from contextlib import nullcontext

import torch

from ..collectives import barrier, gather_objects
from ..private import removed_if_killed
from ..torchrun import symmetric_memory_socket, torchrun_env


def unreachable(world) -> str | None:
    """Why the ranks can't address one another's memory, or None if they can. All ranks must ask, and hear the same."""
    if world.device.type != "cuda":
        return "it needs GPUs"
    if not 2 <= world.size <= 8:
        return f"it joins 2 to 8 ranks, not {world.size}"
    gpus = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    places = gather_objects((socket.gethostname(), gpus[world.device.index]), world)
    reason = None
    for rank, (host, gpu) in enumerate(places):
        if host != socket.gethostname():
            reason = f"rank {rank} runs on another host"
        elif gpu not in gpus:
            reason = f"rank {world.rank} does not see rank {rank}'s GPU"
        elif gpu != gpus[world.device.index] and not torch.cuda.can_device_access_peer(world.device.index,
                                                                                        gpus.index(gpu)):
            reason = f"GPU {world.device.index} can't read GPU {gpus.index(gpu)} directly"
    return next((r for r in gather_objects(reason, world) if r), None)


def symmetric_buffer(world, nbytes: int) -> tuple[torch.Tensor, list[int]]:
    """This rank's buffer, (nbytes,) uint8 of ones, and every rank's address of it as seen from here."""
    # Multicast (multimem) is not allowed on every host; off, a rendezvous never asks for it.
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    import torch.distributed._symmetric_memory as symm_mem

    # `symm_mem.empty` calls this, after two seconds in which it imports sympy to find that the stride is 1
    buffer = symm_mem._SymmetricMemory.empty_strided_p2p((nbytes,), (1,), torch.uint8, world.device).fill_(0xFF)
    handle = rendezvous(buffer, world)
    torch.cuda.synchronize(world.device)
    barrier(world)  # nobody writes into a buffer that its owner still fills
    return buffer, list(handle.buffer_ptrs)


def rendezvous(buffer: torch.Tensor, world):
    """torch's handle of a symmetric buffer, with every rank's memory in it. All ranks must call it.

    Meanwhile each rank has a socket in its temporary folder, which outlives a rank that is killed. Ranks of ours lose
    that folder with their lives; those of torchrun share it with everybody, so somebody must remove the socket.
    """
    import torch.distributed._symmetric_memory as symm_mem

    env = torchrun_env()
    with nullcontext() if env and env.meeting else removed_if_killed(symmetric_memory_socket()):
        return symm_mem.rendezvous(buffer, world.group)


def aligned(x: torch.Tensor) -> torch.Tensor:
    """x itself if it is contiguous and starts at a multiple of 16 bytes, otherwise a copy that does.

    Its last 16 bytes may then be read whole even where x ends within them: torch allocates multiples of 512 bytes.
    """
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()

"""Copies: two ranks swap their tensors with the GPUs' copy engines, and each adds what came. For sums beside products.

    barrier | copy x into the peer's inbox | barrier | x += my inbox

A copy engine moves bytes without a multiprocessor, so the products beside it keep all of theirs; only the addition
takes some, for the time of one pass over memory. The first barrier says "I have read what came last", the second "it is
there": one warp each. That costs microseconds, which push saves and which nobody sees under a product.
With more ranks each would send its whole tensor to every other, as in push.
"""
from __future__ import annotations

import torch

from .base import AllReduce
from .symmetric import rendezvous, symmetric_buffer, unreachable

CAPACITY = 32 << 20  # bytes


class CopiesAllReduce(AllReduce):
    name = "copies"

    def __init__(self, world):
        self.peer, self.patience = 1 - world.rank, int(world.timeout * 1e3)
        self.buffer, _ = symmetric_buffer(world, CAPACITY)
        self.handle = rendezvous(self.buffer, world)  # the one that made the buffer

    @classmethod
    def missing(cls, world) -> str | None:
        return unreachable(world) or (None if world.size == 2 else f"it joins 2 ranks, not {world.size}")

    def can(self, x: torch.Tensor) -> bool:
        return x.is_floating_point() and 0 < x.nbytes <= CAPACITY

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        self.handle.barrier(0, self.patience)
        self.handle.get_buffer(self.peer, x.shape, x.dtype).copy_(x)
        self.handle.barrier(1, self.patience)
        return x.add_(self.buffer.view(x.dtype)[: x.numel()].view(x.shape))

    def close(self) -> None:
        self.buffer = self.handle = None

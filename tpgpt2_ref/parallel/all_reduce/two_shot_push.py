"""Two shots without a barrier: push each peer its part of the work, push everybody the result.

    rank 0                                          rank 1
    push x0's second half ──► rank 1's parts        push x1's first half ──► rank 0's parts
    take x1's first half, add x0's                  take x0's second half, add x1's
    push the sum ──► rank 1's sums                  push the sum ──► rank 0's sums
    take the sum of the second half                 take the sum of the first half

With n ranks a rank sums one nth of the tensor for all. 2(n-1)/n of the tensor leave it, the least possible, where
`push` sends n-1 times the tensor: the same at two ranks, half of it at four, a quarter at eight. It costs a second
crossing of the link. Data are their own flags, as in `push.py`: a word that is not EMPTY has come. So neither a barrier
nor a fence nor the order of stores is needed, and every 16-byte vector is passed on as soon as it is complete.

The parts need two slots, used in turn, for the reason that `push` has: who writes a part of call k has ended call k-1,
so it has a sum that the reader pushed in call k-1, after the reader's call k-2 had ended with its places empty again.
The sums need one. Who pushes a sum of call k has seen the reader's part of call k, which the reader pushed after its
own call k-1 had ended, with the sum of call k-1 taken and its place empty again. `push_model.py` tries every order of
events, and finds the fault of one slot for the parts: the reader has *read* the part of call k-1 before it pushes the
sum, but its emptying store may still be under way.

Each program keeps three rows in the air: parts of the next one, the one it sums, sums of the one before. A row's
programs wait for one another across ranks, so every rank must start the same number of them, all of which run at once.

Two shots: Rabenseifner's reduce-scatter and all-gather (2004). NCCL's LL128 sends data and flags together too, 8
bytes of flags in 128 (Hu et al. 2025, arXiv 2507.04786).
"""
from __future__ import annotations

import torch

from ..collectives import gather_objects
from .base import AllReduce
from .push import DTYPES, ROW_BYTES, Mailbox, PushAllReduce
from .symmetric import aligned, symmetric_buffer

CAPACITY = 32 << 20  # bytes summed at once; a mailbox takes three times as many, whatever the number of ranks
BLOCK_BYTES = (2048, 4096, 8192)  # what one program sums at a time: the smallest of which a tensor's fit into the box


class TwoShotPushAllReduce(AllReduce):
    """Sums tensors of any size, 32 MiB at a time."""

    name = "two_shot_push"

    def __init__(self, world):
        rows = CAPACITY // (world.size * ROW_BYTES)
        buffer, addresses = symmetric_buffer(world, 3 * world.size * rows * ROW_BYTES)
        self.box = TwoShotMailbox(buffer, world.rank, addresses, rows, world.timeout)
        self.box.multiprocessors = min(gather_objects(self.box.multiprocessors, world))
        self.pdl = torch.cuda.get_device_capability(world.device) >= (9, 0)

    @classmethod
    def missing(cls, world) -> str | None:
        return PushAllReduce.missing(world)

    def can(self, x: torch.Tensor) -> bool:
        return x.dtype in DTYPES and x.nbytes > 0 and x.nbytes % 16 == 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.check()
        return self.box.sum(aligned(x), self.pdl)

    def check(self) -> None:
        self.box.check()

    def close(self) -> None:
        self.box = None


class TwoShotMailbox(Mailbox):
    """One rank's mailbox, uint8 (3, size senders, rows, ROW_BYTES), full of EMPTY: two slots of parts, one of sums."""

    def sum(self, x: torch.Tensor, pdl: bool = False) -> torch.Tensor:
        """The sum of x over the ranks, written into x."""
        from .two_shot_push_kernels import two_shot_push_all_reduce

        most = self.size * self.rows * ROW_BYTES  # bytes
        for part in (x,) if x.nbytes <= most else x.view(-1).split(most // x.element_size()):
            block_bytes = next(b for b in BLOCK_BYTES if part.nbytes <= self.size * self.rows * b)
            rows, block = -(-part.nbytes // (self.size * block_bytes)), block_bytes // 16
            two_shot_push_all_reduce[self._grid(rows, block)](part, part, part.nbytes // 16, rows,
                                                              **self._rest(block, pdl))
        return x

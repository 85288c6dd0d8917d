"""torch.distributed's own calls with nothing of ours around them: what `bench collectives` holds our door against."""
from __future__ import annotations

import torch.distributed as dist

from .collectives import _all_gather_single, _reduce_scatter_single


def bare(op: str, x, world):
    """A call without arguments that runs `op` on x, 1-D, in place or into a buffer made here, once."""
    n, group = world.size, world.group
    if op == "all_reduce":
        return lambda: dist.all_reduce(x, group=group)
    if op == "broadcast":
        return lambda: dist.broadcast(x, 0, group=group)
    if op == "all_gather":
        out = x.new_empty(n * len(x))
        return lambda: _all_gather_single(out, x, group=group)
    out = x.new_empty(len(x) // n)
    return lambda: _reduce_scatter_single(out, x, group=group)

"""Diagram 3: the communication operations, and the only door to torch.distributed.

    AllGather   [1,2] | [3,4]      ->  [1,2,3,4] | [1,2,3,4]      every rank gets the concatenation
    AllReduce   [1,2,3] | [4,5,6]  ->  [5,7,9]   | [5,7,9]        every rank gets the sum
    Split       [A1,A2,B1,B2] on every rank -> [A1,A2] | [B1,B2]  a local slice, nothing moves

`layer` names the caller in a trace and on the board (`board.py`), where ranks agree on what they are about to run. A
World without either pays two `is None` a call; with one rank there is nothing to record.
`all_reduce_add_norm` and `all_gather_stack` are kernels that only some algorithms have: the caller brings it.
"""
from __future__ import annotations

import torch
import torch.distributed as dist

from ..errors import RankError
from .board import cell_line

# torch 2.13 renamed the two single-tensor collectives
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def all_reduce(x: torch.Tensor, world, layer: str = "", algorithm=None) -> torch.Tensor:
    """Sum x over the ranks: (...) -> (...), the same on every rank. May overwrite x: use the result.

    algorithm  who sums, where it takes x; otherwise, and by default, the first of the world's that does
    """
    if world.alone:
        return x
    if algorithm is None or not algorithm.takes(x):
        algorithm = algorithm_for(x, world)
    if world.trace is None and world.board is None:
        return algorithm(x)
    return _recorded(world, "all_reduce", x, layer, lambda: algorithm(x), algorithm.name)


def algorithm_for(x: torch.Tensor, world):
    """The world's first all-reduce algorithm that takes x. Raises RankError where there is none."""
    for algorithm in world.all_reduces:
        if algorithm.takes(x):
            return algorithm
    names = ", ".join(a.name for a in world.all_reduces) or "none at all: join the world, or give it `all_reduces`"
    raise RankError(f"rank {world.rank}: no all-reduce algorithm of this world takes {tuple(x.shape)} in {x.dtype}; "
                    f"it has {names}")


def all_gather(x: torch.Tensor, world, layer: str = "") -> torch.Tensor:
    """Concatenate the ranks' tensors along the last dimension, rank 0's first: (..., n) -> (..., size * n)."""
    if world.alone:
        return x if world.size == 1 else torch.cat([x] * world.size, -1)
    x = x.contiguous()
    out = x.new_empty(world.size * x.shape[0], *x.shape[1:])
    _recorded(world, "all_gather", x, layer, lambda: _all_gather_single(out, x, group=world.group))
    return out.view(world.size, *x.shape).movedim(0, -2).flatten(-2)  # (size, ..., n) -> (..., size * n)


def reduce_scatter(x: torch.Tensor, world, layer: str = "") -> torch.Tensor:
    """Sum over the ranks and keep this rank's slice of the first dimension: (size * n, ...) -> (n, ...)."""
    if world.alone:
        return x.chunk(world.size)[world.rank]
    x = x.contiguous()
    out = x.new_empty(x.shape[0] // world.size, *x.shape[1:])
    _recorded(world, "reduce_scatter", x, layer, lambda: _reduce_scatter_single(out, x, group=world.group))
    return out


def broadcast(x: torch.Tensor, world, src: int = 0, layer: str = "") -> torch.Tensor:
    """Overwrite x on every rank with rank src's: (...) -> (...)."""
    if not world.alone:
        _recorded(world, "broadcast", x, layer, lambda: dist.broadcast(x, src, group=world.group), detail=f"rank {src}")
    return x


def all_reduce_add_norm(algorithm, partial: torch.Tensor, linear, residual: torch.Tensor, norm, world,
                        pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """All-reduce, `linear`'s bias, residual and LayerNorm in one kernel: (T, D) -> normed (T, D), new residual (T, D).

    A trace can't tell the sum's time from the rest's: its row is `fused`.
    """
    return _recorded(world, "all_reduce", partial, linear.name, lambda: algorithm.fused_add_norm(
        partial, linear.bias, residual, norm.weight, norm.bias, norm.eps, pdl), algorithm.name,
        "bias, residual, LayerNorm")


def all_gather_stack(algorithm, x: torch.Tensor, world, layer: str = "") -> torch.Tensor:
    """Stack the ranks' tensors, rank 0's first: (...) -> (size, ...)."""
    return _recorded(world, "all_gather", x, layer, lambda: algorithm.gather(x), algorithm.name)


def split_tensor_along_last_dim(x: torch.Tensor, world) -> torch.Tensor:
    """This rank's slice of a tensor that every rank already holds: (..., size * n) -> (..., n). A view."""
    n, rest = divmod(x.shape[-1], world.size)
    if rest:
        raise ValueError(f"the last dimension, {x.shape[-1]}, does not split over {world.size} ranks")
    return x.narrow(-1, world.rank * n, n)


def barrier(world) -> None:
    """Wait until every rank is here."""
    if not world.alone:
        _agreed(world, lambda: dist.barrier(group=world.group), "barrier")


def gather_objects(obj, world) -> list:
    """Every rank's picklable object, by rank, on every rank. For reports, not for tensors."""
    if world.alone:
        return [obj]
    out = [None] * world.size
    _agreed(world, lambda: dist.all_gather_object(out, obj, group=world.group), "gather_objects")
    return out


def _recorded(world, op, x, layer, run, path=None, fused=None, detail=""):
    if world.trace is None:
        return _agreed(world, run, op, x, layer, detail)
    with world.trace.collective(op, x, path or world.backend, layer) as row:
        row.fused = fused
        return _agreed(world, run, op, x, layer, detail)


def _agreed(world, run, op, x=None, layer="", detail=""):
    """Run it; with a board only once all ranks are about to run the same."""
    if world.board is None:
        return run()
    if not world.board.silent:
        dtype, shape = ("", "") if x is None else (str(x.dtype).removeprefix("torch."), str(tuple(x.shape)))
        world.board.post(op, dtype, shape, detail, layer, cell_line())
    with world.board.quiet():  # posted once, not again as the torch.distributed call that it is
        return run()

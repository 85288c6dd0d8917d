"""torch.distributed's own calls on the board: in a notebook readers call `dist.all_reduce` too, not only our door.

Every call in Python goes through a method of `ProcessGroup`; while `watch` is on, each first posts itself. A call that
is not asynchronous waits for the others' posts. One that is only posts, and compares with those who came before:
what it leaves unmatched is seen at the end of the cell. Unseen: calls made in C++ (functional collectives, DDP's
reducer) and replays of CUDA graphs.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from .board import Board, cell_line

# method: (the operation's name, which argument's shapes must be the same on all ranks; None: they may differ)
METHODS = {
    "allreduce": ("all_reduce", 0), "allreduce_coalesced": ("all_reduce", 0), "broadcast": ("broadcast", 0),
    "reduce": ("reduce", 0), "allgather": ("all_gather", 0), "_allgather_base": ("all_gather", 1),
    "all_gather_single": ("all_gather", 1), "allgather_into_tensor_coalesced": ("all_gather", 1),
    "all_gather_single_coalesced": ("all_gather", 1), "reduce_scatter": ("reduce_scatter", 1),
    "_reduce_scatter_base": ("reduce_scatter", 1), "reduce_scatter_single": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 1), "reduce_scatter_single_coalesced": ("reduce_scatter", 1),
    "alltoall": ("all_to_all", None), "alltoall_base": ("all_to_all", None), "all_to_all_single": ("all_to_all", None),
    "gather": ("gather", None), "scatter": ("scatter", None), "barrier": ("barrier", None),
    "monitored_barrier": ("barrier", None),
}
REDUCING = ("all_reduce", "reduce", "reduce_scatter")
ROOTED = ("broadcast", "reduce", "gather", "scatter")


def watch(board: Board) -> None:
    """Let every collective of this process post itself on the board, from now on."""
    for method, (op, same) in METHODS.items():
        if original := getattr(dist.ProcessGroup, method, None):
            setattr(dist.ProcessGroup, method, _posting(board, original, op, same))


def _posting(board: Board, original, op: str, same: int | None):
    def call(group, *args, **kwargs):
        if board.silent:
            return original(group, *args, **kwargs)
        options = next((a for a in (*args, *kwargs.values()) if hasattr(a, "asyncOp")), None)
        tensors = list(_tensors(args)) or list(_tensors(kwargs.values()))
        board.post(op, _dtype(tensors), _shapes(args[same]) if same is not None and len(args) > same else "",
                   _detail(op, options), "", cell_line(), *_channel(board, group),
                   wait=options is not None and not options.asyncOp)
        return original(group, *args, **kwargs)

    call.__name__ = call.__qualname__ = getattr(original, "__name__", op)
    return call


def _channel(board: Board, group) -> tuple[str, tuple[int, ...]]:
    if group.size() == board.size:
        return "", ()
    members = tuple(dist.get_process_group_ranks(group))
    return f"ranks {', '.join(map(str, members))}", members


def _tensors(arguments) -> Iterator[torch.Tensor]:
    for a in arguments:
        if isinstance(a, torch.Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from _tensors(a)


def _dtype(tensors: list[torch.Tensor]) -> str:
    return str(tensors[0].dtype).removeprefix("torch.") if tensors else ""


def _shapes(argument) -> str:
    return " ".join(str(tuple(t.shape)) for t in _tensors([argument]))


def _detail(op: str, options) -> str:
    """What else must be the same: the sum, unless it is the usual one, and the root."""
    said = []
    if op in REDUCING and options is not None:
        kind = str(getattr(options.reduceOp, "op", options.reduceOp)).rpartition(".")[2].lower()
        said += [kind] if kind != "sum" else []
    if op in ROOTED and options is not None:
        said.append(f"rank {options.rootRank}")
    return " ".join(said)


@contextmanager
def unwatched(world):
    """Nothing inside is posted: for what is timed. All ranks must do it alike."""
    if world.board is None:
        yield
        return
    board, world.board = world.board, None
    board.off = True
    try:
        yield
    finally:
        world.board, board.off = board, False

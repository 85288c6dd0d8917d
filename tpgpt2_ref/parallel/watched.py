"""torch.distributed's own calls on the board: in a notebook readers call `dist.all_reduce` too, not only our door.

Every call in Python goes through a method of `ProcessGroup`; while `watch` is on, each first posts itself. A call that
is not asynchronous waits for the others' posts. One that is only posts, and compares with those who came before: what
it leaves unmatched is seen at the end of the cell. A send and its recv are posts of the two alone; to a rank that
receives from any, whatever is sent may be right. In a notebook ranks also destroy a group together or not at all:
NCCL's end of a group waits for the peers, and says nothing. Unseen: calls made in C++ (functional collectives, DDP's
reducer) and replays of CUDA graphs.
"""
from __future__ import annotations

import sys
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
    """Let every collective and message of this process post itself on the board, from now on."""
    for method, (op, same) in METHODS.items():
        if original := getattr(dist.ProcessGroup, method, None):
            setattr(dist.ProcessGroup, method, _posting(board, original, op, same))
    for op in ("send", "recv"):
        setattr(dist.ProcessGroup, op, _posting_message(board, getattr(dist.ProcessGroup, op), op))
    dist.ProcessGroup.recv_anysource = _posting_from_any(board, dist.ProcessGroup.recv_anysource)
    dist.destroy_process_group = _leaving(board, dist.destroy_process_group)


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


def _posting_message(board: Board, original, op: str):
    def call(group, tensors, peer, tag=0, *args, **kwargs):
        if board.silent:
            return original(group, tensors, peer, tag, *args, **kwargs)
        peer_rank = dist.get_global_rank(group, peer)
        members = (board.rank, peer_rank) if op == "send" else (peer_rank, board.rank)
        channel = f"{members[0]} → {members[1]}" + (f", tag {tag}" if tag else "")
        if group.size() != board.size:
            channel += f" in {_channel(board, group)[0]}"
        count = sum(t.numel() for t in _tensors([tensors]))
        board.post(op, _dtype(tensors), f"{count:,} number{'s' * (count != 1)}", "", "", cell_line(), channel, members,
                   wait=_blocks())
        return original(group, tensors, peer, tag, *args, **kwargs)

    call.__name__ = call.__qualname__ = op
    return call


def _posting_from_any(board: Board, original):
    def recv_anysource(group, *args, **kwargs):
        if not board.silent:
            tensors = list(_tensors(args))
            board.post("recv", _dtype(tensors), "", "", "", cell_line(), f"any → {board.rank}", (board.rank,))
        return original(group, *args, **kwargs)

    return recv_anysource


def _leaving(board: Board, original):
    def destroy_process_group(group=None):
        if group is not dist.GroupMember.NON_GROUP_MEMBER and dist.is_initialized():
            board.leave(*_channel(board, group or dist.group.WORLD))
        return original(group)

    return destroy_process_group


def _blocks() -> bool:
    """Whether this send or recv is `dist.send` or `dist.recv`, which wait, not isend or irecv."""
    frame = sys._getframe(2)
    while frame is not None and "distributed" in frame.f_code.co_filename:
        if frame.f_code.co_name in ("send", "recv"):
            return True
        frame = frame.f_back
    return False


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

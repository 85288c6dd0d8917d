"""PyTorch's flight recorder of every rank, read while they hang: for collectives that go past the board.

    recorder = Recorder(folder, rank, size)     on a rank: a thread that sleeps until it is asked
    recorder.begin()                            a new cell: numbers start at 1 again
    ask(folder, size)                           in the notebook: {rank: its posts}, of those that answer

The recorder sits below Python: it knows functional collectives, DDP's reducer, whatever reaches a process group. It
knows no layer and no line, and nothing of graph replays. A rank answers even while it is blocked, since PyTorch then
holds no lock of Python's. Question and answer are files in the ranks' private folder, the answer is JSON.
"""
from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from .posts import Post

LAST = 200  # collectives of a rank that are compared
PATIENCE = 0.5  # seconds that a rank gets to answer
DTYPES = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
          "Int": "int32", "Short": "int16", "Byte": "uint8", "Char": "int8", "Bool": "bool"}
# One shape on all ranks
SAME = re.compile("all_reduce|broadcast|reduce(_oop)?$|(all_gather|reduce_scatter)(_base|(_into)?_tensor_coalesced)")
FORM = re.compile("(_base|_oop|(_into)?_tensor_coalesced|_coalesced)$")  # how it was called, not what it is


class Recorder:
    """One rank's answers."""

    def __init__(self, folder: Path, rank: int, size: int):
        self.folder, self.rank, self.size, self.began = folder, rank, size, 0
        self.dump = dump_function()
        if self.dump is not None:
            os.mkfifo(folder / f"rank{rank}.ask", 0o600)
            threading.Thread(target=self._answer, daemon=True, name="flight recorder").start()

    def begin(self) -> None:
        self.began = time.time_ns()

    def _answer(self) -> None:
        answer, draft = self.folder / f"rank{self.rank}.record", self.folder / f"rank{self.rank}.draft"
        try:
            while True:
                question = (self.folder / f"rank{self.rank}.ask").read_text()  # waits until somebody asks
                entries = json.loads(self.dump(True, False))
                draft.write_text(json.dumps([question, [list(vars(p).values()) for p in self.posts(entries)]]))
                draft.replace(answer)
        except OSError:
            pass  # the folder is gone

    def posts(self, said: dict) -> list[Post]:
        return posts_of(said, self.size, self.began)


def dump_function():
    """How this PyTorch hands out its recorder as JSON: of NCCL where it has it, or else of gloo; None if not at all."""
    import torch._C._distributed_c10d as c10d  # private; there is no public way

    return getattr(c10d, "_dump_nccl_trace_json", None) or getattr(c10d, "_dump_fr_trace_json", None)


def posts_of(said: dict, size: int, began: int) -> list[Post]:
    """The last collectives since `began` (nanoseconds), numbered from 1 in each group, as posts of the board."""
    before, posts = {}, []
    for entry in said.get("entries", []):
        if entry["is_p2p"]:
            continue
        group, number = entry["process_group"][0], entry["collective_seq_id"]
        if entry["time_created_ns"] < began:
            before[group] = number
            continue
        channel, members = group_of(said, group, size)
        op = entry["profiling_name"].partition(":")[2].removeprefix("_")
        op = op.replace("allgather", "all_gather").replace("allreduce", "all_reduce")
        shapes = " ".join(str(tuple(shape)) for shape in entry["input_sizes"]) if SAME.match(op) else ""
        dtype = entry["input_dtypes"][0] if entry["input_dtypes"] else ""
        posts.append(Post(number - before.setdefault(group, number - 1), FORM.sub("", op),
                          DTYPES.get(dtype, dtype.lower()), shapes, channel=channel, members=members))
    return posts[-LAST:]


def group_of(said: dict, group: str, size: int) -> tuple[str, tuple[int, ...]]:
    """(channel, members) of a process group, as the board names them."""
    config = said.get("pg_config", {})
    ranks = config.get(group, config.get("", {})).get("ranks", "[]")
    members = tuple(json.loads(ranks)) or tuple(range(size))
    return ("", ()) if len(members) == size else (f"ranks {', '.join(map(str, members))}", members)


def ask(folder: Path, ranks: Iterable[int]) -> dict[int, tuple[Post, ...]]:
    """{rank: its posts}, the same numbers of a group on all; without the ranks that don't answer."""
    question, said = str(time.monotonic_ns()), {}
    asked = [rank for rank in ranks if _put(folder / f"rank{rank}.ask", question)]
    deadline = time.monotonic() + PATIENCE
    while len(said) < len(asked) and time.monotonic() < deadline:
        time.sleep(0.01)
        for rank in set(asked) - said.keys():
            try:
                answered, posts = json.loads((folder / f"rank{rank}.record").read_text())
            except (OSError, ValueError):
                continue
            if answered == question:
                said[rank] = [Post(*fields, members=tuple(members)) for *fields, members in posts]
    return remembered(said)


def remembered(said: dict[int, list[Post]]) -> dict[int, tuple[Post, ...]]:
    """Of each channel, what all ranks that used it still remember."""
    first = {}  # of each channel, the number from which on all do
    for posts in said.values():
        oldest = {}
        for post in posts:
            oldest.setdefault(post.channel, post.number)
        first |= {channel: max(n, first.get(channel, 1)) for channel, n in oldest.items()}
    return {rank: tuple(p for p in posts if p.number >= first[p.channel]) for rank, posts in said.items()}


def _put(fifo: Path, question: str) -> bool:
    """Whether somebody listens."""
    try:
        file = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as e:
        if e.errno in (errno.ENXIO, errno.ENOENT):
            return False
        raise
    with os.fdopen(file, "w") as pipe:
        pipe.write(question)
    return True

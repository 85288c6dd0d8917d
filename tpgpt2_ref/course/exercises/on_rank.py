"""What runs on a rank when an answer is checked there: the tools that an answer gets, and the judging.

The answer comes as its source. It sees torch, F (torch.nn.functional) and math, and what its arguments bring.
"""
from __future__ import annotations

import linecache
import math
import time

import torch
import torch.nn.functional as F

from ...parallel import collectives
from ...parallel.exchange import exchange, host_tensors, shared_tensors
from .catalogue import find
from .judge import judge


class RankTools:
    """One rank's tools. What moves data notes (name, bytes that leave this rank) in `log`."""

    def __init__(self, world):
        self.world, self.rank, self.n, self.log = world, world.rank, world.size, []
        self.device = world.device

    def gather(self, value) -> list:
        """Every rank's value, by rank. For the judge: an answer's log stays as it is."""
        return collectives.gather_objects(value, self.world)

    def all_reduce(self, x):
        """The sum over the ranks, (...) -> (...); x stays as it is."""
        self.log.append(("all_reduce", x.nbytes))
        return collectives.all_reduce(x.clone(), self.world)

    def all_gather(self, x):
        """Every rank's x, rank 0's first: (...) -> (n, ...)."""
        self.log.append(("all_gather", x.nbytes))
        return collectives.all_gather(x[..., None], self.world).movedim(-1, 0)

    def exchange(self, x, to: int, source: int):
        """Send x to rank `to`, and return the tensor that rank `source` sends: like x in shape."""
        for other in (to, source):
            if other == self.rank or not 0 <= other < self.n:
                raise ValueError(f"exchange with rank {other}: of ranks 0 to {self.n - 1}, this is {self.rank}")
        self.log.append(("exchange", x.nbytes))
        return exchange(x, to, source, self.world)

    def shared(self, numel: int):
        """(tensors by rank that all ranks read, a barrier)."""
        return shared_tensors(self.world, numel)

    def steps(self) -> Steps:
        return Steps(self.world)


class Steps:
    """How far each rank has come, for all ranks to see: puts ranks in an order without a message between them."""

    def __init__(self, world):
        self.world, self.counts = world, host_tensors(world, 1)

    def at(self, step: int) -> None:
        """This rank has come to `step`, and so has its GPU."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        self.counts[self.world.rank].fill_(step)

    def until(self, ranks, step: int) -> None:
        """Wait until these ranks have come to `step`."""
        while any(float(self.counts[rank]) < step for rank in ranks):
            time.sleep(0.0005)


def compiled(source: str, function: str):
    """The function that a reader's source defines."""
    file = f"<your {function}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # a traceback shows the line
    names = {"torch": torch, "F": F, "math": math, "__name__": "answer"}
    exec(compile(source, file, "exec"), names)
    return names[function]


def judge_on_rank(name: str, source: str, function: str, seed: int, world) -> str | None:
    """None if the answer is right, otherwise why not: the same text on every rank."""
    return judge(find(name).task, compiled(source, function), seed, RankTools(world), world.device)


def time_on_rank(name: str, source: str, function: str, world) -> list[dict]:
    """The answer's own times on GPUs, as the task measures them."""
    return find(name).task.speed(compiled(source, function), RankTools(world))

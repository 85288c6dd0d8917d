"""The all-reduce algorithms, each one file and one line of `ALGORITHMS`. Fastest first; c10d takes what is left.

Imports no torch: the names, their limits and the model of `push` can be read in a page.
"""
from __future__ import annotations

from importlib import import_module
from math import inf

from ...errors import UserError
from .base import AllReduce

ALGORITHMS = {
    "push": "push:PushAllReduce",  # into the peers' memory, without a barrier
    "two_shot_push": "two_shot_push:TwoShotPushAllReduce",  # the same with a sum of slices in between
    "one_shot": "one_shot:OneShotAllReduce",  # torch symmetric memory: read everything from every peer
    "two_shot": "two_shot:TwoShotAllReduce",  # torch symmetric memory: sum a slice, collect the slices
    "c10d": "c10d:C10dAllReduce",  # the group's own: NCCL on GPUs, gloo on CPUs
}
# For sums that run beside products, in order of preference: they leave the multiprocessors to those.
BESIDE = {"copies": "copies:CopiesAllReduce"}  # the GPUs' copy engines, and an addition

# "auto" gives each algorithm tensors up to so many bytes, by the number of ranks: the largest size up to which it is
# never slower than those behind it, in the rows of book/results/{2,4}x-nvidia-h200/collectives.json (all_reduce, in a
# CUDA graph). A test derives them again. Eight ranks are not measured; their limits are reckoned: push's seven copies
# are 5.25 tensors more than two_shot moves, and at 400 GB/s cost more than its barriers (4 us) from about 300 KB.
KiB, MiB = 1 << 10, 1 << 20
RECKONED = (8,)  # ranks whose limits nobody has measured: `explain` says so
LIMITS = {
    "push": {2: 4 * MiB, 4: 2 * MiB, 8: 256 * KiB},
    "two_shot_push": {2: 256 * MiB, 4: 0, 8: 0},  # of four ranks no rows are recorded yet
    "one_shot": {2: 1 * MiB, 4: 768 * KiB, 8: 32 * KiB},
    "two_shot": {2: 16 * MiB, 4: 16 * MiB, 8: 32 * MiB},
}

__all__ = ["ALGORITHMS", "AllReduce", "BESIDE", "LIMITS", "RECKONED", "all_reduce_beside", "all_reduces"]


def all_reduces(world, which: str = "auto") -> tuple[AllReduce, ...]:
    """The algorithms that this world can use, in order of preference; the last takes every tensor.

    which  "auto", or a name of `ALGORITHMS` ("nccl" and "gloo" mean "c10d"), which then sums whatever it is able to
    """
    which = {"nccl": "c10d", "gloo": "c10d"}.get(which, which)
    if which != "auto" and which not in ALGORITHMS:
        raise UserError(f"unknown all-reduce algorithm {which!r}; known: auto, {', '.join(ALGORITHMS)}")
    algorithms = []
    for name in ALGORITHMS:
        if name == "c10d" or which not in ("auto", name):
            continue
        algorithm = algorithm_class(name)
        if reason := algorithm.missing(world):
            if which == name:
                raise UserError(f"cannot sum with {name}: {reason}")
            continue
        algorithms.append(algorithm(world))
        if which == "auto":
            algorithms[-1].limit = limit(name, world.size)
    return (*algorithms, algorithm_class("c10d")(world))


def all_reduce_beside(world) -> AllReduce | None:
    """Who sums while products run, or None where only the world's own can. Made once; all ranks must ask."""
    if world.beside is None and not world.alone:
        name = next((name for name in BESIDE if not algorithm_class(name).missing(world)), None)
        world.beside = name and algorithm_class(name)(world)
    return world.beside


def algorithm_class(name: str) -> type[AllReduce]:
    """The class behind a name of `ALGORITHMS` or `BESIDE`; its file imports torch."""
    module, cls = (ALGORITHMS | BESIDE)[name].split(":")
    return getattr(import_module(f".{module}", __name__), cls)


def limit(name: str, size: int) -> float:
    """Bytes up to which "auto" gives tensors to an algorithm, at the next larger number of ranks in `LIMITS`."""
    by_size = LIMITS.get(name, {})
    return next((by_size[n] for n in sorted(by_size) if n >= size), inf)


def explain(size: int, nbytes: int) -> dict[str, str]:
    """{algorithm: what "auto" says to a tensor of nbytes among `size` ranks}: the first that runs there and takes it
    sums it."""
    limits = {name: limit(name, size) for name in ALGORITHMS}
    how = ", reckoned, not measured" if next((n for n in sorted(LIMITS["push"]) if n >= size), None) in RECKONED else ""
    return {name: "takes any size" if most == inf else f"{'takes' if nbytes <= most else 'leaves'} {nbytes:,} bytes: "
            f"up to {most:,} at {size} ranks{how}" for name, most in limits.items()}

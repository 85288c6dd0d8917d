"""The all-reduce algorithms, each one file and one line of `ALGORITHMS`. Fastest first; c10d takes what is left."""
from __future__ import annotations

from importlib import import_module
from math import inf

from ...errors import UserError
from .base import AllReduce

ALGORITHMS = {
    "push": "push:PushAllReduce",  # into the peers' memory, without a barrier
    "one_shot": "one_shot:OneShotAllReduce",  # torch symmetric memory: read everything from every peer
    "two_shot": "two_shot:TwoShotAllReduce",  # torch symmetric memory: sum a slice, collect the slices
    "c10d": "c10d:C10dAllReduce",  # the group's own: NCCL on GPUs, gloo on CPUs
}

# "auto" gives each algorithm tensors up to so many bytes, by the number of ranks. Microseconds a call, bf16, in CUDA
# graphs, H200 over NVLink 4, 27 Nov 2026 (book/results/{2,4}x-nvidia-h200/collectives.json):
#                         two ranks                       |              four ranks
#     bytes        NCCL   one_shot   two_shot     push    |    NCCL   one_shot   two_shot     push
#     2,048        13.5        6.8       10.2      2.0    |    21.1        7.4       10.9      2.5
#     131,072      15.3        8.4       11.8      2.5    |    24.4        9.6       14.1      3.7
#     786,432      20.9       12.3       14.3      4.4    |    27.8       16.6       16.9     11.4
#     1,048,576    19.6       15.0       15.7      5.0    |    28.3       20.1       18.5     14.7
#     1,572,864    22.4       18.0       17.3      7.3    |    29.2       26.2       22.7     20.8
#     2,097,152    32.4       22.3       19.9      9.0    |    34.5       32.8       28.1     27.9
#     8,388,608    50.5       63.4       45.4     27.9    |    70.4      105.8       65.2     91.4
#     16,777,216   79.0                  77.0     55.8    |   113.8                 113.7
#     25,165,824  108.9                 110.3             |   150.9                 159.3
# Eight ranks are not measured; their limits are reckoned: push's seven copies are 5.25 tensors more than two_shot
# moves, and at 400 GB/s cost more than its barriers (4 us) from about 300 KB.
KiB, MiB = 1 << 10, 1 << 20
LIMITS = {
    "push": {2: 16 * MiB, 4: 1536 * KiB, 8: 256 * KiB},
    "one_shot": {2: 1 * MiB, 4: 768 * KiB, 8: 32 * KiB},
    "two_shot": {2: 16 * MiB, 4: 16 * MiB, 8: 32 * MiB},
}

__all__ = ["AllReduce", "LIMITS", "ALGORITHMS", "all_reduces"]


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


def algorithm_class(name: str) -> type[AllReduce]:
    """The class behind a name of `ALGORITHMS`; its file imports torch."""
    module, cls = ALGORITHMS[name].split(":")
    return getattr(import_module(f".{module}", __name__), cls)


def limit(name: str, size: int) -> float:
    """Bytes up to which "auto" gives tensors to an algorithm, at the next larger number of ranks in `LIMITS`."""
    by_size = LIMITS.get(name, {})
    return next((by_size[n] for n in sorted(by_size) if n >= size), inf)

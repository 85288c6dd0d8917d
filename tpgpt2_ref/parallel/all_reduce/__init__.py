"""The ways to sum, each one file and one line of `WAYS`. Fastest first; c10d takes what is left."""
from __future__ import annotations

from importlib import import_module
from math import inf

from ...errors import UserError
from .base import AllReduce
from .c10d import C10dAllReduce

WAYS = {
    "push": "push:PushAllReduce",  # into the peers' memory, without a barrier
    "one_shot": "one_shot:OneShotAllReduce",  # torch symmetric memory: read everything from every peer
    "two_shot": "two_shot:TwoShotAllReduce",  # torch symmetric memory: sum a slice, collect the slices
    "c10d": "c10d:C10dAllReduce",  # the group's own: NCCL on GPUs, gloo on CPUs
}

# "auto" gives each way tensors up to so many bytes, by the number of ranks. Microseconds a call, bf16, in CUDA graphs,
# two H200 over NVLink 4, 24 Nov 2026 (book/results/2x-nvidia-h200/collectives.json):
#     bytes        NCCL   one_shot   two_shot     push
#     2,048        12.5        6.9       10.3      2.1
#     16,384       13.4        7.3       10.8      2.3
#     131,072      16.7        8.1       11.7      2.6
#     1,048,576    20.6       18.9       19.6      9.2
#     4,194,304    45.2       46.3       38.4     29.9
#     8,388,608    64.5       78.1       59.3     44.8
#     16,777,216  104.6                 126.7    126.2
# At 16 MiB a sample is one call and holds the ranks' unequal start: push's spread from 82 to 145; between products of a
# prefill 12 MB take it 41 (prefill.json).
# Four and eight ranks are not measured yet; till then this is reckoned. push's n-1 copies are 1.5 and 5.25 tensors
# more than two_shot moves; at 400 GB/s they cost more than the barriers (4 us) from about 1 MB and 300 KB.
KiB, MiB = 1 << 10, 1 << 20
LIMITS = {
    "push": {2: 16 * MiB, 4: 1 * MiB, 8: 256 * KiB},
    "one_shot": {2: 1 * MiB, 4: 64 * KiB, 8: 32 * KiB},
    "two_shot": {2: 8 * MiB, 4: 32 * MiB, 8: 32 * MiB},
}

__all__ = ["AllReduce", "C10dAllReduce", "LIMITS", "WAYS", "ways_to_sum"]


def ways_to_sum(world, which: str = "auto") -> tuple[AllReduce, ...]:
    """The ways that this world can use, in order of preference; the last takes every tensor.

    which  "auto", or a name of `WAYS` ("nccl" and "gloo" mean "c10d"), which then sums whatever it is able to
    """
    which = {"nccl": "c10d", "gloo": "c10d"}.get(which, which)
    if which != "auto" and which not in WAYS:
        raise UserError(f"unknown way to sum {which!r}; known: auto, {', '.join(WAYS)}")
    ways = []
    for name, target in WAYS.items():
        if name == "c10d" or which not in ("auto", name):
            continue
        module, cls = target.split(":")
        way = getattr(import_module(f".{module}", __name__), cls)
        if reason := way.missing(world):
            if which == name:
                raise UserError(f"cannot sum with {name}: {reason}")
            continue
        ways.append(way(world))
        if which == "auto":
            ways[-1].limit = limit(name, world.size)
    return (*ways, C10dAllReduce(world))


def limit(name: str, size: int) -> float:
    """Bytes up to which "auto" gives tensors to a way, at the next larger number of ranks in `LIMITS`."""
    by_size = LIMITS.get(name, {})
    return next((by_size[n] for n in sorted(by_size) if n >= size), inf)

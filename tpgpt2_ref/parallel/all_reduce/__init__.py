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

# "auto" gives each way tensors up to so many bytes, by the number of ranks. Microseconds a call, bf16, in CUDA graphs:
#                 two H200 over NVLink (22 Nov 2026)      push, both ranks on one H200 (24 Nov 2026):
#     bytes        NCCL   one_shot   two_shot             the kernel's own time, without NVLink
#     1,536        11.2        6.0        6.0              1.5
#     24,576       12.2        6.7        6.8              1.9
#     196,608      12.9        7.6        7.4              2.2
#     1,572,864    21.9       15.3       11.1              4.6
#     12,582,912   62.5                                   34.9
# one_shot and two_shot cross at about 100 KB. two_shot was never behind NCCL, so it goes as far as its buffer.
# push over NVLink is not measured yet; till then this is reckoned. At two ranks it moves as many bytes as the others,
# without their barriers: first, as far as its mailbox. At four and eight its n-1 copies are 1.5 and 5.25 tensors more
# than two_shot moves; at 400 GB/s they cost more than the barriers (4 us) from about 1 MB and 300 KB.
KiB, MiB = 1 << 10, 1 << 20
LIMITS = {
    "push": {2: 16 * MiB, 4: 1 * MiB, 8: 256 * KiB},
    "one_shot": {2: 128 * KiB, 4: 64 * KiB, 8: 32 * KiB},
    "two_shot": {2: 32 * MiB, 4: 32 * MiB, 8: 32 * MiB},
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

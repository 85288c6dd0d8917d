"""The ways to sum, each one file and one line of `WAYS`. Fastest first; c10d takes what is left."""
from __future__ import annotations

from importlib import import_module

from ...errors import UserError
from .base import AllReduce
from .c10d import C10dAllReduce

WAYS = {
    "c10d": "c10d:C10dAllReduce",  # the group's own: NCCL on GPUs, gloo on CPUs
}

__all__ = ["AllReduce", "C10dAllReduce", "WAYS", "ways_to_sum"]


def ways_to_sum(world, which: str = "auto") -> tuple[AllReduce, ...]:
    """The ways that this world can use, in order of preference; the last takes every tensor.

    which  "auto", or a name of `WAYS` ("nccl" and "gloo" mean "c10d"), which then comes first
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
    return (*ways, C10dAllReduce(world))

"""A world of any size in one process: collectives run in shape and in number, and move nothing.

For counts and bytes, never for values or times. Tensors live on torch's "meta" device: shapes without memory.
"""
from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.distributed as dist

from .all_reduce import all_reduces
from .world import World


@contextmanager
def fake_world(size: int, rank: int = 0):
    """A World of `size` ranks, of which this process plays one and nobody plays the others."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    world = World(rank, size, torch.device("meta"), dist.group.WORLD)
    world.all_reduces = all_reduces(world, "c10d")
    try:
        yield world
    finally:
        world.close()

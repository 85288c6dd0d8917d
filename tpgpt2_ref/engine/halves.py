"""Hiding a sum: two halves of a batch go through the layers in turn, and one's sums run under the other's products.

    products   A attn | B attn | A MLP | B MLP | A attn | ...     the current stream
    sums              |   A    |   B   |   A   |   B    | ...     a stream of their own

`prefill_layers` computes, and stops at each sum. `whole` waits there: the plain twin. `in_turn` starts the sum and goes
on with the other half. Both give each half the same numbers, to the bit.
What must hold: a half goes on only behind its own sum, and every rank starts the same sums in the same order.
Known as dual micro-batches (DeepSeek-V3) and TokenWeave (Gond et al. 2025, arXiv 2505.11329).
"""
from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from math import inf

import torch

from ..parallel.collectives import all_reduce
from ..trace import now

Layers = Generator[tuple[torch.Tensor, str], torch.Tensor, torch.Tensor]  # yields (partial, layer), wants their sum
HALVES = ("A", "B")
WORTH = inf  # bytes of the smaller half's sums from which two halves are faster. Not measured yet: only on request


def cut(lengths: list[int]) -> int:
    """Prompts of the first half, where the longer half is shortest: 0 for a single prompt, which stays whole."""
    return min(range(1, len(lengths)), key=lambda i: max(sum(lengths[:i]), sum(lengths[i:])), default=0)


def why_whole(lengths: list[int], model) -> str | None:
    """Why prompts of these lengths had better stay in one piece, or None."""
    if model.world.alone:
        return "one rank has no sum to hide"
    if len(lengths) == 1:  # its second half would attend to the first's pages; too short to gain, at 1,024 tokens
        return "one prompt is not cut"
    i = cut(lengths)
    nbytes = min(sum(lengths[:i]), sum(lengths[i:])) * model.config.n_embd * model.impl.dtype.itemsize
    return None if nbytes >= WORTH else f"a half's sums have {nbytes:,} bytes, and pay from {WORTH:,} on"


def whole(layers: Layers, world) -> torch.Tensor:
    """What the layers return, each sum waited for."""
    total = None
    try:
        while True:
            partial, layer = _to_next_sum(layers, total, world)
            total = all_reduce(partial, world, layer)
    except StopIteration as end:
        return end.value


def in_turn(halves: list[Layers], side: SideStream) -> list[torch.Tensor]:
    """What each half's layers return, its sums under the other's products."""
    sums, ends = [None] * len(halves), []
    while len(ends) < len(halves):
        for i, half in enumerate(halves):
            try:
                partial, layer = _to_next_sum(half, sums[i] and sums[i].result(), side.world, HALVES[i])
                sums[i] = side.start(partial, layer)
            except StopIteration as end:
                ends.append(end.value)
    return ends


def _to_next_sum(layers: Layers, total: torch.Tensor | None, world, part: str = ""):
    """Give the layers the sum that they wait for, and have them compute up to the next: (partial, layer)."""
    if world.trace is None:
        return layers.send(total)
    world.trace.part, start = part, now(world.device.type == "cuda")
    try:
        partial, layer = layers.send(total)
    except StopIteration:
        world.trace.part = ""
        raise
    world.trace.stage(layer.removesuffix(".c_proj"), start, now(world.device.type == "cuda"))
    return partial, layer


@dataclass
class Sum:
    """A sum under way. It holds the partial: its memory may go to others only behind the sum."""

    partial: torch.Tensor
    total: torch.Tensor
    done: torch.cuda.Event | None

    def result(self) -> torch.Tensor:
        """The sum, for what the current stream does from here on."""
        if self.done is not None:
            torch.cuda.current_stream().wait_event(self.done)
        return self.total


class SideStream:
    """Where sums run beside products, in the order in which they were started. On a CPU they run at once.

    algorithm  who sums; None: the first of the world's that takes the tensor
    priority   -1: the sum's few programs get the next multiprocessors that are free, before those of a product

    Memory that was allocated on one stream and used on the other is given back on the host, so it must be safe to use
    again in either's order. It is: a sum begins behind all that was enqueued on the current stream before it.
    """

    def __init__(self, world, algorithm=None, priority: int = -1):
        self.world, self.algorithm = world, algorithm
        self.stream = torch.cuda.Stream(world.device, priority=priority) if world.device.type == "cuda" else None

    def start(self, partial: torch.Tensor, layer: str) -> Sum:
        if self.stream is None:
            return Sum(partial, all_reduce(partial, self.world, layer, self.algorithm), None)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            total = all_reduce(partial, self.world, layer, self.algorithm)
            return Sum(partial, total, self.stream.record_event())

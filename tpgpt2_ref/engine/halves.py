"""Hiding a sum: two halves of a batch go through the layers in turn, and one's sums run under the other's products.

    lane A   products | sum  | products | sum  | products | ...     the current stream
    lane B            | products | sum  | products | sum  | ...     a second one

`prefill_layers` computes, and stops at each sum. `whole` waits there: the plain twin. `in_turn` enqueues the sum in its
half's lane and goes on with the other half. While one lane sums, the other's products have the GPU; while both compute,
one fills the multiprocessors that the other's last tiles leave empty. Either way a half gets the same numbers, to the
bit. What must hold: every rank starts the same sums in the same order, and a half keeps to its lane.
Known as dual micro-batches (DeepSeek-V3) and TokenWeave (Gond et al. 2025, arXiv 2505.11329).
"""
from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext

import torch

from ..parallel.collectives import all_reduce
from ..trace import now

Layers = Generator[tuple[torch.Tensor, str], torch.Tensor, torch.Tensor]  # yields (partial, layer), wants their sum
HALVES = ("A", "B")
# By ranks: bytes of the smaller half's sums from which two halves were faster (`bench prefill`, two H200).
WORTH = {2: 5 << 20}


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
    if (worth := WORTH.get(model.world.size)) is None:
        return f"nobody has measured halves on {model.world.size} ranks"
    return None if nbytes >= worth else f"a half's sums have {nbytes:,} bytes, and pay from {worth:,} on"


def whole(layers: Layers, world) -> torch.Tensor:
    """What the layers return, each sum waited for."""
    total = None
    try:
        while True:
            partial, layer = _to_next_sum(layers, total, world)
            total = all_reduce(partial, world, layer)
    except StopIteration as end:
        return end.value


def in_turn(halves: list[Layers], lanes: Lanes) -> list[torch.Tensor]:
    """What each half's layers return, its sums under the other's products."""
    totals, ends = [None] * len(halves), []
    lanes.fork()
    while len(ends) < len(halves):
        for i, half in enumerate(halves):
            with lanes.lane(i):
                try:
                    partial, layer = _to_next_sum(half, totals[i], lanes.world, HALVES[i])
                    totals[i] = lanes.sum(partial, layer)
                except StopIteration as end:
                    ends.append(end.value)
    lanes.join()
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


class Lanes:
    """A stream for each half. Sums run in the order in which they were enqueued, whichever half is ahead.

    algorithm  who sums; None: the first of the world's that takes the tensor
    On a CPU there are no streams, and all runs at once. A tensor's memory goes back to the stream that it was allocated
    on, so a half must make in its lane whatever it reads: then nothing of one lane is given to the other too early.
    """

    def __init__(self, world, algorithm=None):
        self.world, self.algorithm, self.streams, self.summed = world, algorithm, [], None
        self.second = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None

    def fork(self) -> None:
        """Both lanes begin behind what the current stream has to do; the first is that stream."""
        if self.second is not None:
            self.streams, self.summed = [torch.cuda.current_stream(), self.second], None
            self.second.wait_stream(self.streams[0])

    def lane(self, i: int):
        """Enqueue in this half's lane."""
        return torch.cuda.stream(self.streams[i]) if self.streams else nullcontext()

    def sum(self, partial: torch.Tensor, layer: str) -> torch.Tensor:
        """The sum over the ranks, in the current lane, behind the sum before it."""
        if self.summed is not None:
            torch.cuda.current_stream().wait_event(self.summed)
        total = all_reduce(partial, self.world, layer, self.algorithm)
        self.summed = torch.cuda.current_stream().record_event() if self.streams else None
        return total

    def join(self) -> None:
        """The current stream goes on behind both lanes."""
        if self.streams:
            self.streams[0].wait_stream(self.second)

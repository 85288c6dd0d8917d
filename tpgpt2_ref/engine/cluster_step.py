"""Decode steps of cluster kernels (`kernels/clusters`) for a model: why not, their memory, and the step as a call."""
from __future__ import annotations

from typing import Callable

import torch

from ..errors import RankError
from ..kernels.clusters import nvrtc
from ..kernels.clusters.shape import MOST_ROWS, Shape, misfit
from ..kernels.clusters.step import ClusterStep, Stream, kernel_names
from ..kernels.state import DecodeState
from ..parallel.all_reduce.symmetric import symmetric_buffer


def why_no_clusters(model) -> str | None:
    """Why this model's decode steps can't be cluster kernels here, or None if they can."""
    world = model.world
    if why := nvrtc.why_not(world.device) or misfit(model):
        return why
    if world.size > 1 and not any(a.gathers for a in world.all_reduces):
        return "the cluster kernels write into every rank's memory, which these ranks can't"
    return None


def compile_ahead(model, batch: int = 1) -> None:
    """Have the kernels for that many rows compiled in the background, unless they are kept from an earlier run."""
    shape = Shape.of(model, batch, model.impl.block_size)
    for name in kernel_names(shape.ranks):
        nvrtc.start(name, shape.defines(name))


class ClusterSteps:
    """Makes the steps of one model, which share the memory where the residual stream stands between kernels.

    load    (kernel, its constants) -> the kernel; None: compiled for the model's GPU
    stream  that memory, for MOST_ROWS rows; None: as much of the GPU's, which with several ranks all of them reach
    """

    def __init__(self, model, kv_caches: list[torch.Tensor], load: Callable | None = None,
                 stream: Stream | None = None):
        self.model, self.kv_caches = model, kv_caches
        self.load = load or (lambda name, defines: nvrtc.compiled(name, defines, model.world.device))
        self.stream = stream or self._stream(Stream.nbytes(Shape.of(model, MOST_ROWS, model.impl.block_size)))

    def _stream(self, nbytes: int) -> Stream:
        world = self.model.world
        if world.size > 1:
            return Stream(*symmetric_buffer(world, nbytes), world.timeout)
        buffer = torch.full((nbytes,), 0xFF, dtype=torch.uint8, device=world.device)
        return Stream(buffer, [buffer.data_ptr()])

    def check(self) -> None:
        """Raise RankError if a rank was waited for in vain in a step that has ended."""
        if self.model.world.size > 1 and int(self.stream.failed):
            raise RankError(f"rank {self.model.world.rank}: a rank sent nothing for {self.stream.patience:.0f} s; "
                            "what came since then is wrong")

    def step(self, state: DecodeState, pdl: bool = True) -> Callable[[], None]:
        """A decode step of up to MOST_ROWS rows, greedy or at a temperature, as a call that a graph can hold."""
        step = ClusterStep(self.model, self.kv_caches, state, self.stream, self.load)
        return lambda: step(pdl)

"""Where the time of a cluster kernel goes: when its blocks come to each place of its source, on the GPU's own clock.

The kernels are compiled with PROFILE, so that each block's first thread writes down when it came to each `MARK`
(`kernels/clusters/source/step.cuh`). A step runs in a CUDA graph as `generate` has it; of a layer's kernels the last
layer's are read. Writing costs a little: the sum of the stretches is a little above a kernel's time without.
The command around it: `commands/bench/phases.py`.
"""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from ..engine.cluster_step import ClusterSteps
from ..engine.ladder import LADDER, Rung
from ..kernels.clusters import nvrtc
from ..kernels.clusters.shape import Shape
from .step import make_rung_step
from .stopwatch import captured

X = {0: "start", 1: "weights asked for", 3: "waited for the kernel before", 4: "own columns of x summed",
     5: "waited for x of all blocks"}
PLACES = {  # by kernel, in the order of its source: the number of a MARK, and what lies behind whoever is there
    "attention": X | {6: "x times LayerNorm's weight", 7: "q, k, v: own part of K", 8: "q, k, v summed and sent",
                      9: "waited for q, k, v of all blocks", 10: "attended to own tokens", 11: "own part sent",
                      12: "waited for the parts of all blocks", 13: "one part of eight", 14: "c_proj, and the end"},
    "mlp": X | {6: "x times LayerNorm's weight", 7: "c_fc: own part of K", 9: "c_fc summed, GELU",
                11: "c_proj, sent to its owners", 12: "waited for own columns from all blocks", 14: "end"},
    "head": X | {6: "LayerNorm", 12: "logits and their argmax", 14: "end"},
}
BLOCKS, MARKS = 512, 16  # of `marks` in the source


def sweep(model, name: str, dtype: str, batch: int, prompt_len: int, repeats: int, load: Callable | None = None,
          rung: Rung = LADDER[-1]) -> Iterator[tuple[dict, list[float]]]:
    """(row, microseconds of the median block in each of `repeats` steps), place by place, of this rank's kernels.

    name, dtype  of the model, as rows name them
    load         (kernel, its constants) -> the kernel: NVRTC's for this GPU; on a CPU the emulator's, whose clock
                 counts what no GPU would: only the order of the places means something there
    rung         the one with cluster kernels
    In a row nanoseconds are since the first block's start; `start_ns` is since the start of the last layer.
    """
    device, kernels = model.world.device, {}
    compiled = load or partial(nvrtc.compiled, device=device)

    def profiled(kernel, defines):
        kernels[kernel] = compiled(kernel, defines | {"PROFILE": True})
        return kernels[kernel]

    step = make_rung_step(model, rung, batch, prompt_len, partial(ClusterSteps, load=profiled))
    if device.type == "cuda":
        step = captured(step)
    samples = []
    for _ in range(repeats):
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        shape = Shape.of(model, batch, model.impl.block_size)
        samples.append({kernel: marks(kernels[kernel], shape.grid(kernel)) for kernel in PLACES})
    of_all = {"model": name.removeprefix("random:"), "dtype": dtype, "tp": model.world.size, "batch": batch,
              "prompt_len": prompt_len, "clock_step_ns": clock_step(samples)}
    for kernel, places in PLACES.items():
        start = median(int(s[kernel][:, 0].min() - s["attention"][:, 0].min()) for s in samples)
        for number, place in places.items():
            since = [(s[kernel][:, number] - s[kernel][:, 0].min()).double() for s in samples]
            row = {"kernel": kernel, "place": place, "number": number, "blocks": len(since[0]), "start_ns": start}
            for what, of in (("min", torch.min), ("median", torch.median), ("max", torch.max)):
                row[f"{what}_ns"] = median(float(of(blocks)) for blocks in since)
            yield of_all | row, [float(blocks.median()) / 1e3 for blocks in since]


def marks(kernel, blocks: int) -> torch.Tensor:
    """(blocks, MARKS) int64 nanoseconds of the kernel's last launch; what a source has no MARK for is 0."""
    found = kernel.read("marks", ctypes.c_longlong * (BLOCKS * MARKS))
    return torch.tensor(list(found)).view(BLOCKS, MARKS)[:blocks]


def clock_step(samples) -> int:
    """Nanoseconds between two neighbours of all that the clock said: no difference below it means anything."""
    told = torch.cat([m.flatten() for s in samples for m in s.values()])
    steps = told[told > 0].unique().diff()
    return int(steps.min()) if len(steps) else 0

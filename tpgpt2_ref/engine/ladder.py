"""The ladder from plain torch to the fastest step: each rung is one switch more than the one before it.

`bench decode` measures every rung, tests hold each to the one below, and `generate` uses the last that can run.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..kernels import KERNELS, Kernels
from ..kernels.clusters.shape import MOST_ROWS


@dataclass(frozen=True)
class Rung:
    name: str
    what: str  # in one line, for the table
    graph: bool = True
    readable: bool = False  # the step is gpt2.py itself
    fused: tuple[str, ...] = KERNELS  # the functions of a step that are kernels of our own
    fused_sum: bool = False
    scaled_norm: bool = False
    pdl: bool = False
    clusters: int = 0  # up to so many rows two kernels a layer, see kernels/clusters; more rows go by the others

    def kernels(self) -> Kernels:
        return Kernels.choose(self.fused, self.fused_sum, self.pdl, self.scaled_norm)


ENDS = ("embed", "argmax")  # what puts tokens in and takes them out without the host
LADDER = (
    Rung("eager", "gpt2.py, one launch after the other", graph=False, readable=True),
    Rung("graph", "gpt2.py in a CUDA graph, with its collectives and sampling", readable=True, fused=("argmax",)),
    Rung("+qkv", "LayerNorm and c_attn in one kernel; the rest in plain torch", fused=(*ENDS, "qkv")),
    Rung("+attention", "the cache write and our decode attention in one kernel", fused=(*ENDS, "qkv", "attention")),
    Rung("+residual", "c_proj, bias and residual in one kernel", fused=(*ENDS, "qkv", "attention", "add", "partial")),
    Rung("+gelu", "LayerNorm, c_fc and GELU in one kernel",
         fused=(*ENDS, "qkv", "attention", "add", "partial", "gelu")),
    Rung("+head", "LayerNorm, logits and their argmax in one kernel"),
    Rung("+sum", "all-reduce, bias, residual and LayerNorm in one kernel", fused_sum=True),
    Rung("+norm", "the sums of a LayerNorm come from the kernel before it: none is left between the products",
         fused_sum=True, scaled_norm=True),
    Rung("+pdl", "programmatic dependent launch: a kernel asks for its weights before the one before it ends",
         fused_sum=True, scaled_norm=True, pdl=True),
    Rung("+clusters", "two kernels a layer, whose blocks hand over through each other's shared memory",
         fused_sum=True, scaled_norm=True, pdl=True, clusters=MOST_ROWS),
)


def rungs(world_size: int, hopper: bool, clusters: bool = False) -> tuple[Rung, ...]:
    """The rungs that differ on this machine: one rank sums nothing, several normalize where they sum, and PDL needs
    Hopper (capability 9.0). `clusters`: whether the model fits the cluster kernels."""
    same = "+norm" if world_size > 1 else "+sum"
    return tuple(r for r in LADDER if r.name != same and (hopper or not r.pdl) and (clusters or not r.clusters))

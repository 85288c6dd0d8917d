"""Triton kernels of a decode step, and their twins in plain torch (`plain.py`).

    embed | qkv  attention  add  gelu  add | ... | head_argmax  argmax

That is five kernels a layer and three beside the layers; from batch 32 on also two LayerNorms a layer, unless the
product before leaves what they need (`scaled_norm`).
`Kernels` says which of them a step uses: the ladder from plain torch to all fused is made of such choices.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial as bound
from typing import Callable

KERNELS = ("embed", "qkv", "attention", "gelu", "add", "partial", "head_argmax", "argmax")


@dataclass(frozen=True)
class Kernels:
    """The functions that a decode step is made of: from `plain.py`, or its fused twin of the same name."""

    embed: Callable
    qkv: Callable
    attention: Callable
    gelu: Callable
    add: Callable
    partial: Callable
    head_argmax: Callable
    argmax: Callable
    fused_sum: bool = False
    scaled_norm: bool = False
    pdl: bool = False

    @classmethod
    def choose(cls, fused: tuple[str, ...] = KERNELS, fused_sum: bool = True, pdl: bool = False,
               scaled_norm: bool = False) -> Kernels:
        """Those in `fused` from Triton, the others in plain torch. Triton is imported if any is.

        fused_sum  all-reduce, bias, residual and LayerNorm in one kernel, if the world's all-reduce algorithm has one
        scaled_norm  `add` leaves what the LayerNorm behind it needs: no kernel of its own normalizes
        pdl        programmatic dependent launch of the fused ones: a kernel asks for its weights while the one
                   before it still runs (Hopper and newer)
        """
        from . import plain

        chosen = {name: getattr(plain, name) for name in KERNELS}
        if fused:
            from . import argmax, decode_attention, embed, products

            home = {"attention": decode_attention, "embed": embed, "argmax": argmax}
            chosen |= {name: bound(getattr(home.get(name, products), name), pdl=pdl) for name in fused}
        return cls(**chosen, fused_sum=fused_sum, scaled_norm=scaled_norm and "add" in fused, pdl=pdl)

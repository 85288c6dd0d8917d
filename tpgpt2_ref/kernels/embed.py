"""The first kernel of a decode step: the newest tokens' rows of the vocabulary and of the positions."""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .state import DecodeState


@triton.jit
def embed_kernel(ids, positions, wte, wpe, out, first_row, rows, D: tl.constexpr, WIDTH: tl.constexpr,
                 POSITION: tl.constexpr, PDL: tl.constexpr):
    """A program takes one sequence: ids (B,), wte (rows, D), wpe (n_positions, D) -> out (B, D)."""
    b = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.load(ids + b + 0 * column) - first_row
    mine = (row >= 0) & (row < rows) & (column < D)
    x = tl.load(wte + row * D + column, mask=mine, other=0.0)
    if POSITION:
        x += tl.load(wpe + tl.load(positions + b) * D + column, mask=column < D, other=0.0)
    tl.store(out + b * D + column, x, mask=column < D)


def embed(state: DecodeState, wte, wpe, position: bool, pdl: bool = False) -> torch.Tensor:
    """-> (B, D): this rank's rows of the vocabulary (zeros for another rank's), and the positions' rows."""
    d = wte.weight.shape[1]
    out = wte.weight.new_empty(state.batch, d)
    embed_kernel[(state.batch,)](state.ids, state.positions, wte.weight, wpe.weight, out, wte.start, wte.local,
                                 D=d, WIDTH=triton.next_power_of_2(d), POSITION=position, PDL=pdl, launch_pdl=pdl)
    return out

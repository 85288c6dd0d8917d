"""The last kernel of a decode step: the argmax over what the head's programs found, of all ranks.

It ends a step on the device: it puts each sequence's next token where the next step reads it, moves the position on,
and writes the token into the host's own (pinned) memory, where the host may look for it whenever it likes. No copy,
no event, no wait of the GPU on the host.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .state import DecodeState

LEAST_KEY = tl.constexpr(-(2**63))


@triton.jit
def order_key(value, token):
    """An int64 whose order is that of (value, -token): the largest is the argmax, the first of equals."""
    bits = value.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # int32 with the order of the floats
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - token).to(tl.int64)


@triton.jit
def argmax_kernel(keys, row, column, ids, positions, live, host_tokens, tiles, length, TILES: tl.constexpr,
                  PDL: tl.constexpr):
    """A program takes one sequence b: keys (tiles, B), with strides row and column; host_tokens (B, length)."""
    b = tl.program_id(0)
    tile = tl.arange(0, TILES)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    key = tl.max(tl.load(keys + tile * row + b * column, mask=tile < tiles, other=LEAST_KEY), 0)
    token = 0x7FFFFFFF - (key & 0xFFFFFFFF)
    position = tl.load(positions + b)
    alive = tl.load(live + b)
    tl.store(ids + b, token)
    tl.store(host_tokens + b * length + position + 1, token.to(tl.int32), mask=alive != 0)
    tl.store(positions + b, position + alive)


def argmax(keys: torch.Tensor, state: DecodeState, pdl: bool = False) -> None:
    """keys (programs, B) -> the next token of every row, into `state`."""
    argmax_kernel[(state.batch,)](keys, *keys.stride(), state.ids, state.positions, state.live, state.tokens,
                                  keys.shape[0], state.tokens.shape[1], TILES=triton.next_power_of_2(keys.shape[0]),
                                  PDL=pdl, launch_pdl=pdl)

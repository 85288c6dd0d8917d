"""The last kernel of a decode step, and the first: the best of the tiles' best tokens, and its embedding.

`pick` ends a step on the device: it takes each sequence's best token out of what the head's programs found, puts it
where the next step reads it, moves the position on, and writes the token into the host's own (pinned) memory, where
the host may look for it whenever it likes. No copy, no event, no wait of the GPU on the host.
The noise is `noise.py`'s, bit for bit: a hash of (seed, sequence, position, token).
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .state import DecodeState

LEAST_KEY = tl.constexpr(-(2**63))


@triton.jit
def hash32(x):
    """Wellons' lowbias32."""
    x = x.to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_hash(seed, number, position):
    return hash32(hash32(number.to(tl.uint32, bitcast=True) ^ hash32(seed)) ^ position.to(tl.uint32, bitcast=True))


@triton.jit
def gumbel_of(row, token):
    u = (hash32(row ^ token.to(tl.uint32, bitcast=True)) >> 9).to(tl.float32)
    return -tl.log(-tl.log((u + 0.5) / 8388608.0))


@triton.jit
def order_key(value, token):
    """An int64 whose order is that of (value, -token): the largest is the best token, the first of equals."""
    bits = value.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # int32 with the order of the floats
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - token).to(tl.int64)


@triton.jit
def pick_kernel(best, row, column, ids, positions, live, host_tokens, tiles, length, TILES: tl.constexpr,
                PDL: tl.constexpr):
    b = tl.program_id(0)
    tile = tl.arange(0, TILES)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    key = tl.max(tl.load(best + tile * row + b * column, mask=tile < tiles, other=LEAST_KEY), 0)
    token = 0x7FFFFFFF - (key & 0xFFFFFFFF)
    position = tl.load(positions + b)
    alive = tl.load(live + b)
    tl.store(ids + b, token)
    tl.store(host_tokens + b * length + position + 1, token.to(tl.int32), mask=alive != 0)
    tl.store(positions + b, position + alive)


@triton.jit
def embed_kernel(ids, positions, wte, wpe, out, first_row, rows, D: tl.constexpr, WIDTH: tl.constexpr,
                 POSITION: tl.constexpr, PDL: tl.constexpr):
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


def pick(keys: torch.Tensor, state: DecodeState, pdl: bool = False) -> None:
    """keys (programs, B) -> the next token of every row, into `state`."""
    pick_kernel[(state.batch,)](keys, *keys.stride(), state.ids, state.positions, state.live, state.tokens,
                                keys.shape[0], state.tokens.shape[1], TILES=triton.next_power_of_2(keys.shape[0]),
                                PDL=pdl, launch_pdl=pdl)


def embed(state: DecodeState, wte, wpe, position: bool, pdl: bool = False) -> torch.Tensor:
    """-> (B, D): this rank's rows of the vocabulary (zeros for another rank's), and the positions' rows."""
    d = wte.weight.shape[1]
    out = wte.weight.new_empty(state.batch, d)
    embed_kernel[(state.batch,)](state.ids, state.positions, wte.weight, wpe.weight, out, wte.start, wte.local,
                                 D=d, WIDTH=triton.next_power_of_2(d), POSITION=position, PDL=pdl, launch_pdl=pdl)
    return out

"""A product of a decode step for up to 16 rows of x: tensor cores; each warp takes a slice of K, summed behind.

As in `gemv`, ROWS rows of W are on their way before the wait for the kernel before, and LayerNorm is slid behind.
"""
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..state import DecodeState
from ..tiles import Skinny
from .epilogue import finish, prepare
from .product import Product


@triton.jit
def skinny_kernel(x, weight, bias, norm_weight, norm_bias, eps, residual, out, positions, vocabulary, first_token,
                  temperature, seeds, N, batch_size, K: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr,
                  SLICES: tl.constexpr, DEPTH: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
                  THEN: tl.constexpr, PDL: tl.constexpr):
    """x (batch, K), weight (N, K), bias (N,), norm_weight and norm_bias (K,), residual (batch, N) -> out (batch, N).

    With THEN "argmax", out is keys (programs, batch).
    """
    CHUNK: tl.constexpr = SLICES * DEPTH
    # fp16 holds rows whose spread is so small beside their mean that E[x^2] - mean^2 loses it: they are shifted. bf16,
    # of three bits less, does not, and a shift would cost a twentieth of a step of eight rows.
    SHIFT: tl.constexpr = NORM and x.dtype.element_ty != tl.bfloat16
    CHUNKS: tl.constexpr = (K + CHUNK - 1) // CHUNK
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SLICES)[:, None, None] * DEPTH + tl.arange(0, DEPTH)[None, None, :]  # (SLICES, 1, DEPTH)
    columns = column + 0 * row[None, :, None]  # (SLICES, ROWS, DEPTH)
    rows = row[:, None]
    b = tl.load(bias + rows, mask=rows < N, other=0.0).to(tl.float32) if BIAS else tl.zeros((ROWS, 1), tl.float32)
    weighted = tl.zeros((SLICES, ROWS, DEPTH), tl.float32)
    shifted = tl.zeros((SLICES, ROWS, DEPTH), tl.float32)
    w = ()
    for c in tl.static_range(CHUNKS):
        k = c * CHUNK + columns
        w += (tl.load(weight + row[None, :, None] * K + k, mask=(row[None, :, None] < N) & (k < K), other=0.0),)
    if NORM:
        wg = ()
        for c in tl.static_range(CHUNKS):
            k = c * CHUNK + columns
            shifted += w[c].to(tl.float32) * tl.load(norm_bias + k, mask=k < K, other=0.0).to(tl.float32)
            gain = tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32)
            wg += ((w[c].to(tl.float32) * gain).to(weight.dtype.element_ty),)
            weighted += wg[c].to(tl.float32)
        w = wg
        s = tl.sum(tl.sum(weighted, 2), 0)[:, None]
        b += tl.sum(tl.sum(shifted, 2), 0)[:, None]
    if PDL:
        gdc_wait()
    for tile in range(tl.program_id(1), tl.cdiv(batch_size, B), tl.num_programs(1)):
        batch = tile * B + tl.arange(0, B)
        sequence = batch[None, :, None]
        extra = prepare(rows, batch[None, :], N, batch_size, residual, temperature, THEN)
        xs = ()  # of (SLICES, B, DEPTH)
        for c in tl.static_range(CHUNKS):
            kx = c * CHUNK + column
            xs += (tl.load(x + sequence * K + kx, mask=(sequence < batch_size) & (kx < K), other=0.0),)
        if SHIFT:  # the row sums of x - x_0, whose square does not cancel
            first = tl.load(x + sequence * K, mask=sequence < batch_size, other=0.0).to(tl.float32)  # (1, B, 1)
            x_0 = tl.load(x + batch * K, mask=batch < batch_size, other=0.0).to(tl.float32)[None, :]  # the same (1, B)
        total = tl.zeros((SLICES, B, DEPTH), tl.float32)
        squares = tl.zeros((SLICES, B, DEPTH), tl.float32)
        y = tl.zeros((SLICES, ROWS, B), tl.float32)
        for c in tl.static_range(CHUNKS):
            if NORM:
                shifted_x = xs[c].to(tl.float32)
                if SHIFT:
                    shifted_x -= first
                    if K % CHUNK:
                        shifted_x = tl.where(c * CHUNK + column < K, shifted_x, 0.0)
                total += shifted_x
                squares += shifted_x * shifted_x
            y = tl.dot(w[c], tl.permute(xs[c], (0, 2, 1)), y)
        product = tl.sum(y, 0)  # (ROWS, B)
        if NORM:
            mean = tl.sum(tl.sum(total, 2), 0)[None, :] / K
            variance = tl.sum(tl.sum(squares, 2), 0)[None, :] / K - mean * mean
            if SHIFT:
                mean += x_0
            product = (product - mean * s) * tl.rsqrt(variance + eps)
        finish(product + b, extra, rows, batch[None, :], N, batch_size, out, positions, vocabulary, first_token,
               seeds, THEN)


def launch(product: Product, x, state: DecodeState, tile: Skinny, pdl: bool) -> None:
    """x (B, K), or a Residual of it, through the product."""
    p = product.behind(x)
    skinny_kernel[(triton.cdiv(p.weight.shape[0], tile.ROWS), 1)](
        *p.arguments(state), p.x.shape[0], **p.options(pdl), **vars(tile))

"""A product of a decode step for 1 to 4 rows of x: multiply-adds; ROWS rows of W in registers, a warp to a row or two.

It asks for its rows of W first, and only then waits for the kernel before (programmatic dependent launch, `PDL`).
LayerNorm is slid behind the product, so that all that depends on weights alone is done by then; it may as well be that
of x - x_0, whose square does not cancel:

    W ((x - mean) / std * g + b_n) + b  =  (W_g x - mean s) / std + t,   W_g = W * g,  s = W_g 1,  t = W b_n + b
"""
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..state import DecodeState
from ..tiles import Gemv
from .epilogue import finish, prepare
from .product import Product

CHUNK = 256  # columns of K that a warp reads at once: 32 lanes of 8


@triton.jit
def gemv_kernel(x, weight, bias, norm_weight, norm_bias, eps, residual, out, positions, vocabulary, first_token,
                temperature, seeds, N, K: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
                NORM: tl.constexpr, BIAS: tl.constexpr, THEN: tl.constexpr, PDL: tl.constexpr):
    """x (B, K), weight (N, K), bias (N,), norm_weight and norm_bias (K,), residual (B, N) -> out (B, N).

    With THEN "argmax", out is keys (programs, B).
    """
    CHUNKS: tl.constexpr = (K + CHUNK - 1) // CHUNK
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # (ROWS, 1)
    columns = tl.arange(0, CHUNK)[None, :] + 0 * rows  # (ROWS, CHUNK): each warp reads x itself, none waits for another
    b = tl.load(bias + rows, mask=rows < N, other=0.0).to(tl.float32) if BIAS else tl.zeros((ROWS, 1), tl.float32)
    w = ()
    for c in tl.static_range(CHUNKS):
        k = c * CHUNK + columns
        w += (tl.load(weight + rows * K + k, mask=(rows < N) & (k < K), other=0.0),)  # (ROWS, CHUNK)
    if NORM:
        weighted = tl.zeros((ROWS, CHUNK), tl.float32)
        shifted = tl.zeros((ROWS, CHUNK), tl.float32)
        wg = ()
        for c in tl.static_range(CHUNKS):
            k = c * CHUNK + columns
            shifted += w[c].to(tl.float32) * tl.load(norm_bias + k, mask=k < K, other=0.0).to(tl.float32)
            wg += (w[c].to(tl.float32) * tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32),)
            weighted += wg[c]
        s = tl.sum(weighted, 1)[:, None]
        b += tl.sum(shifted, 1)[:, None]
        w = wg
    one = tl.arange(0, 1)[None, :]
    extras = ()
    if THEN != "add":
        for i in tl.static_range(B):
            extras += (prepare(rows, i + one, N, B, residual, temperature, THEN),)
    if PDL:
        gdc_wait()
    if THEN == "add":  # a kernel before wrote the residual
        for i in tl.static_range(B):
            extras += (prepare(rows, i + one, N, B, residual, temperature, THEN),)
    for i in tl.static_range(B):
        y = tl.zeros((ROWS, CHUNK), tl.float32)
        if NORM:
            first = tl.load(x + i * K).to(tl.float32)
        total = (0 * columns).to(tl.float32)
        squares = (0 * columns).to(tl.float32)
        for c in tl.static_range(CHUNKS):
            k = c * CHUNK + columns
            xs = tl.load(x + i * K + k, mask=k < K, other=0.0).to(tl.float32)
            if NORM:
                xs -= first
                if K % CHUNK:
                    xs = tl.where(k < K, xs, 0.0)
            y += w[c].to(tl.float32) * xs
            if NORM:
                total += xs
                squares += xs * xs
        product = tl.sum(y, 1)[:, None]  # (ROWS, 1)
        if NORM:
            mean = tl.sum(total, 1)[:, None] / K
            variance = tl.sum(squares, 1)[:, None] / K - mean * mean
            product = (product - mean * s) * tl.rsqrt(variance + eps)
        finish(product + b, extras[i], rows, i + one, N, B, out, positions, vocabulary, first_token, seeds, THEN)


def launch(product: Product, x, state: DecodeState, tile: Gemv, pdl: bool) -> None:
    """x (B, K), or a Residual of it, through the product."""
    p = product.behind(x)
    gemv_kernel[(triton.cdiv(p.weight.shape[0], tile.ROWS),)](
        *p.arguments(state), B=p.x.shape[0], CHUNK=CHUNK, **p.options(pdl), **vars(tile))

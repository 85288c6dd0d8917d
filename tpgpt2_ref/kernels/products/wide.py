"""A product of a decode step for many rows of x: tensor cores; a tile of x and one of W pass by in pieces of K.

SPLITS programs share K, and the last to arrive adds up. Before the wait for the kernel before, W is brought into the
L2 cache. A LayerNorm in front of it is half done: the product before left x times the norm's weight and its row sums.
"""
from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..prefetch import prefetch
from ..prefill import add_norm
from ..state import DecodeState
from ..tiles import Wide
from .epilogue import finish, prepare
from .product import Product


@triton.jit
def wide_kernel(x, weight, bias, norm_weight, norm_bias, eps, residual, out, positions, vocabulary, first_token,
                temperature, seeds, N, batch_size, sums, arrived, row_sums, next_row_sums, gain, scaled,
                K: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
                SPLITS: tl.constexpr, LINES: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
                THEN: tl.constexpr, PDL: tl.constexpr, LEAVE: tl.constexpr):
    """x (batch, K), weight (N, K), bias (N,), residual (batch, N) -> out (batch, N), or keys (programs, batch).

    With LEAVE, out goes out times the next norm's weight too, `scaled` (batch, N), and into `row_sums` (3, batch) go
    the sums of out - r and of its square, and r, the row's first element before: near out's mean, so that the squares
    do not cancel. In units of 2^-24: integers add up to the same in any order, and hold rows whose squares sum to 2^39.
    With NORM, x is such a product, norm_weight is s (N,), norm_bias t (N,); what was in next_row_sums was read by an
    earlier kernel, and is set to zero.
    """
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :]
    batch = tl.program_id(1) * B + tl.arange(0, B)[:, None]
    depth = tl.arange(0, DEPTH)
    SHARE: tl.constexpr = (K + SPLITS * DEPTH - 1) // (SPLITS * DEPTH) * DEPTH  # of K, for one program
    EVEN: tl.constexpr = K % (SPLITS * DEPTH) == 0
    start = tl.program_id(2) * SHARE
    from_weight = weight + tl.minimum(rows, N - 1) * K  # (1, ROWS)
    if PDL:
        line = tl.minimum(start + tl.arange(0, LINES) * 64, K - 1)  # 128 bytes each
        prefetch(from_weight + line[:, None])
    from_weight += depth[:, None]  # (DEPTH, ROWS)
    from_x = x + (batch % batch_size) * K + depth[None, :]  # (B, DEPTH): past the batch, not all one row
    b = tl.load(bias + rows, mask=rows < N, other=0.0).to(tl.float32) if BIAS else tl.zeros((1, ROWS), tl.float32)
    if NORM:
        s = tl.load(norm_weight + rows, mask=rows < N, other=0.0)
        b += tl.load(norm_bias + rows, mask=rows < N, other=0.0)
    if LEAVE:
        g = tl.load(gain + rows, mask=rows < N, other=0.0).to(tl.float32)
    if THEN != "add":
        extra = prepare(rows, batch, N, batch_size, residual, temperature, THEN)
    if PDL:
        gdc_wait()
    if THEN == "add":  # not before the wait: a kernel before wrote the residual
        extra = prepare(rows, batch, N, batch_size, residual, temperature, THEN)
    if LEAVE:
        first = tl.load(residual + batch * N, mask=batch < batch_size, other=0.0).to(tl.float32)  # (B, 1)
    if NORM:  # on their way while the product runs
        total = tl.load(row_sums + batch, mask=batch < batch_size, other=0)
        square = tl.load(row_sums + batch_size + batch, mask=batch < batch_size, other=0)
        shift = tl.load(row_sums + 2 * batch_size + batch, mask=batch < batch_size, other=0)
        if (tl.program_id(0) == 0) & (tl.program_id(2) == 0):
            tl.store(next_row_sums + batch, 0 * batch.to(tl.int64), mask=batch < batch_size)
            tl.store(next_row_sums + batch_size + batch, 0 * batch.to(tl.int64), mask=batch < batch_size)
    y = tl.zeros((B, ROWS), tl.float32)
    for k in tl.range(start, start + SHARE, DEPTH, num_stages=STAGES):
        xs = tl.load(from_x + k, mask=(k + depth[None, :] < K) | EVEN, other=0.0)
        w = tl.load(from_weight + k, mask=(k + depth[:, None] < K) | EVEN, other=0.0)
        y = tl.dot(xs, w, y)
    last = True
    if SPLITS > 1:  # leave the sum to the last of the programs that share K
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        place = tl.arange(0, B)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        tl.store(sums + (tile * SPLITS + tl.program_id(2)) * ROWS * B + place, y)
        tl.debug_barrier()  # all of this program's stores come before its arrival
        last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLITS - 1
        if last:
            tl.store(arrived + tile, 0)  # for the next kernel
            y = tl.zeros((B, ROWS), tl.float32)
            for i in tl.static_range(SPLITS):
                y += tl.load(sums + (tile * SPLITS + i) * ROWS * B + place, volatile=True)
    if last:
        if NORM:
            mean = total.to(tl.float32) * (1 / 16777216 / K)
            variance = square.to(tl.float32) * (1 / 16777216 / K) - mean * mean
            mean += shift.to(tl.float32) * (1 / 16777216)
            y = (y - mean * s) * tl.rsqrt(variance + eps)
        if LEAVE:
            inside = (rows < N) & (batch < batch_size)
            x_next = (y + b + extra).to(out.dtype.element_ty).to(tl.float32)
            tl.store(scaled + batch * N + rows, x_next * g, mask=inside)
            shifted = tl.where(inside, x_next - first, 0.0)
            total = (tl.sum(shifted, 1)[:, None] * 16777216).to(tl.int64)
            square = (tl.sum(shifted * shifted, 1)[:, None] * 16777216).to(tl.int64)
            tl.atomic_add(row_sums + batch, total, mask=batch < batch_size, sem="relaxed")
            tl.atomic_add(row_sums + batch_size + batch, square, mask=batch < batch_size, sem="relaxed")
            if tl.program_id(0) == 0:
                tl.store(row_sums + 2 * batch_size + batch, (first * 16777216).to(tl.int64), mask=batch < batch_size)
        finish(y + b, extra, rows, batch, N, batch_size, out, positions, vocabulary, first_token, seeds, THEN,
               ROWS_AXIS=1)


def launch(product: Product, x, state: DecodeState, tile: Wide, pdl: bool, next_norm=None) -> torch.Tensor | None:
    """x (B, K), or a Residual of it, through the product.

    next_norm  the LayerNorm behind it: -> `scaled` (B, N), and the row sums in the state, for the product behind that
    """
    p = product.behind(x)
    if p.norm_weight is not None and x.scaled is not None:
        s, t = folded(x.norm, p.weight, state)
        p = replace(p, x=x.scaled, norm_weight=s, norm_bias=t)
    elif p.norm_weight is not None:  # many rows meet many programs: normalize once
        p = product.behind(add_norm(x.x, None, x.norm, pdl)[1])
    (batch, k), n = p.x.shape, p.weight.shape[0]
    grid = triton.cdiv(n, tile.ROWS), triton.cdiv(batch, tile.B), tile.SPLITS
    size = grid[0] * grid[1] * grid[2] * tile.ROWS * tile.B if tile.SPLITS > 1 else 1
    sums = p.x.new_empty(size, dtype=torch.float32)
    lines = triton.next_power_of_2(triton.cdiv(k, tile.SPLITS * 64))
    leave = next_norm is not None
    scaled, gain = (torch.empty_like(p.out), next_norm.weight) if leave else (p.x, p.x)
    wide_kernel[grid](*p.arguments(state), batch, sums, state.arrived, state.row_sums[state.turn],
                      state.row_sums[1 - state.turn], gain, scaled, LINES=lines, LEAVE=leave, **p.options(pdl),
                      **vars(tile))
    if p.norm_weight is not None:
        state.turn = 1 - state.turn  # the other two are zero now
    return scaled if leave else None


def folded(norm, weight: torch.Tensor, state: DecodeState) -> tuple[torch.Tensor, torch.Tensor]:
    """s = W weight and t = W bias of a LayerNorm before W (N, K), both (N,) fp32: computed once, and kept."""
    key = id(norm), id(weight)
    if key not in state.folded:
        pairs = [(part.float() @ norm.weight.float(), part.float() @ norm.bias.float()) for part in weight.split(4096)]
        state.folded[key] = norm, weight, *(torch.cat(parts) for parts in zip(*pairs))
    return state.folded[key][2:]

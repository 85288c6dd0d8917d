"""The products of a decode step on the device: B rows of x meet a whole matrix W (N, K). The time is that to read W.

    gemv     1 to 4 rows of x      multiply-adds; ROWS rows of W in registers, a warp to a row or two
    skinny   up to 16 rows         tensor cores; ROWS rows of W, each warp a slice of K, the slices are summed behind
    wide     more                  tensor cores; a tile of x and one of W pass by in pieces of K, split over programs

gemv and skinny ask for their rows of W first, and only then wait for the kernel before (programmatic dependent
launch, `PDL`); wide has them brought into the L2 cache. In gemv and skinny LayerNorm is slid behind the product, so
that all that depends on weights alone is done by then:

    W ((x - mean) / std * g + b_n) + b  =  (W_g x - mean s) / std + t,   W_g = W * g,  s = W_g 1,  t = W b_n + b
"""
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .prefetch import prefetch
from .sample import LEAST_KEY, gumbel_of, order_key, row_hash


@triton.jit
def gelu_tanh(x):
    """0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)"""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def prepare(rows, batch, N, batch_size, residual, sampling, THEN: tl.constexpr):
    """What `finish` needs beside y, loaded before the product so that it need not be waited for after it.

    "add": the residual (ROWS, B); "best": the temperature; otherwise nothing
    """
    extra = 0.0
    if THEN == "add":
        inside = (rows < N) & (batch < batch_size)
        extra = tl.load(residual + batch * N + rows, mask=inside, other=0.0).to(tl.float32)
    elif THEN == "best":
        extra = tl.load(sampling).to(tl.float32, bitcast=True)
    return extra


@triton.jit
def finish(y, extra, rows, batch, N, batch_size, out, positions, vocabulary, first_token, sampling,
           THEN: tl.constexpr, ROWS_AXIS: tl.constexpr = 0):
    """y (ROWS, B) float32, of output features `rows` (ROWS, 1) and sequences `batch` (1, B): what comes behind.

    ROWS_AXIS  1: all of it transposed
    """
    inside = (rows < N) & (batch < batch_size)
    at = batch * N + rows
    if THEN == "store":
        tl.store(out + at, y, mask=inside)
    elif THEN == "gelu":
        tl.store(out + at, gelu_tanh(y), mask=inside)
    elif THEN == "add":
        tl.store(out + at, y + extra, mask=inside)
    elif THEN == "best":
        token = rows + first_token
        if extra > 0:  # Gumbel-max: the largest of logits / temperature + noise is a fair draw
            number = tl.load(sampling + 2 + batch, mask=batch < batch_size, other=0)
            position = tl.load(positions + batch, mask=batch < batch_size, other=0).to(tl.int32) + 1
            y = y / extra + gumbel_of(row_hash(tl.load(sampling + 1), number, position), token)
        key = tl.where((rows < N) & (token < vocabulary), order_key(y, token), LEAST_KEY)
        column = tl.max(batch, ROWS_AXIS)
        tl.store(out + tl.program_id(0) * batch_size + column, tl.max(key, ROWS_AXIS), mask=column < batch_size)


@triton.jit
def gemv_kernel(x, weight, bias, norm_weight, norm_bias, eps, residual, out, positions, vocabulary, first_token,
                sampling, N, K: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
                NORM: tl.constexpr, BIAS: tl.constexpr, THEN: tl.constexpr, PDL: tl.constexpr):
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
            extras += (prepare(rows, i + one, N, B, residual, sampling, THEN),)
    if PDL:
        gdc_wait()
    if THEN == "add":  # a kernel before wrote the residual
        for i in tl.static_range(B):
            extras += (prepare(rows, i + one, N, B, residual, sampling, THEN),)
    for i in tl.static_range(B):
        y = tl.zeros((ROWS, CHUNK), tl.float32)
        total = (0 * columns).to(tl.float32)
        squares = (0 * columns).to(tl.float32)
        for c in tl.static_range(CHUNKS):
            k = c * CHUNK + columns
            xs = tl.load(x + i * K + k, mask=k < K, other=0.0).to(tl.float32)
            y += w[c].to(tl.float32) * xs
            if NORM:
                total += xs
                squares += xs * xs
        product = tl.sum(y, 1)[:, None]  # (ROWS, 1)
        if NORM:
            mean = tl.sum(total, 1)[:, None] / K
            variance = tl.sum(squares, 1)[:, None] / K - mean * mean
            product = (product - mean * s) * tl.rsqrt(variance + eps)
        finish(product + b, extras[i], rows, i + one, N, B, out, positions, vocabulary, first_token, sampling, THEN)


@triton.jit
def skinny_kernel(x, weight, bias, norm_weight, norm_bias, eps, residual, out, positions, vocabulary, first_token,
                  sampling, N, batch_size, K: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, SLICES: tl.constexpr,
                  DEPTH: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, THEN: tl.constexpr, PDL: tl.constexpr):
    CHUNK: tl.constexpr = SLICES * DEPTH
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
        extra = prepare(rows, batch[None, :], N, batch_size, residual, sampling, THEN)
        xs = ()  # of (SLICES, B, DEPTH)
        for c in tl.static_range(CHUNKS):
            kx = c * CHUNK + column
            xs += (tl.load(x + sequence * K + kx, mask=(sequence < batch_size) & (kx < K), other=0.0),)
        total = tl.zeros((SLICES, B, DEPTH), tl.float32)
        squares = tl.zeros((SLICES, B, DEPTH), tl.float32)
        y = tl.zeros((SLICES, ROWS, B), tl.float32)
        for c in tl.static_range(CHUNKS):
            if NORM:
                total += xs[c].to(tl.float32)
                squares += xs[c].to(tl.float32) * xs[c].to(tl.float32)
            y = tl.dot(w[c], tl.permute(xs[c], (0, 2, 1)), y)
        product = tl.sum(y, 0)  # (ROWS, B)
        if NORM:
            mean = tl.sum(tl.sum(total, 2), 0)[None, :] / K
            variance = tl.sum(tl.sum(squares, 2), 0)[None, :] / K - mean * mean
            product = (product - mean * s) * tl.rsqrt(variance + eps)
        finish(product + b, extra, rows, batch[None, :], N, batch_size, out, positions, vocabulary, first_token,
               sampling, THEN)


@triton.jit
def wide_kernel(x, weight, bias, norm_weight, norm_bias, eps, residual, out, positions, vocabulary, first_token,
                sampling, N, batch_size, sums, arrived, moments, next_moments, gain, scaled, K: tl.constexpr,
                B: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr,
                LINES: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, THEN: tl.constexpr, PDL: tl.constexpr,
                LEAVE: tl.constexpr):
    """With LEAVE, out goes out times the next norm's weight too, and the sums of its rows and their squares into
    `moments` (2, B), in units of 2^-24: integers add up to the same in any order, and hold rows whose squares sum to
    2^39. With NORM, x is such a product, norm_weight is s (N,), norm_bias t (N,); what was in next_moments was read by
    an earlier kernel, and is set to zero.
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
        extra = prepare(rows, batch, N, batch_size, residual, sampling, THEN)
    if PDL:
        gdc_wait()
    if THEN == "add":  # not before the wait: a kernel before wrote the residual
        extra = prepare(rows, batch, N, batch_size, residual, sampling, THEN)
    if NORM:  # on their way while the product runs
        total = tl.load(moments + batch, mask=batch < batch_size, other=0)
        square = tl.load(moments + batch_size + batch, mask=batch < batch_size, other=0)
        if (tl.program_id(0) == 0) & (tl.program_id(2) == 0):
            tl.store(next_moments + batch, 0 * batch.to(tl.int64), mask=batch < batch_size)
            tl.store(next_moments + batch_size + batch, 0 * batch.to(tl.int64), mask=batch < batch_size)
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
            y = (y - mean * s) * tl.rsqrt(variance + eps)
        if LEAVE:
            inside = (rows < N) & (batch < batch_size)
            x_next = tl.where(inside, (y + b + extra).to(out.dtype.element_ty).to(tl.float32), 0.0)
            tl.store(scaled + batch * N + rows, x_next * g, mask=inside)
            total = (tl.sum(x_next, 1)[:, None] * 16777216).to(tl.int64)
            square = (tl.sum(x_next * x_next, 1)[:, None] * 16777216).to(tl.int64)
            tl.atomic_add(moments + batch, total, mask=batch < batch_size, sem="relaxed")
            tl.atomic_add(moments + batch_size + batch, square, mask=batch < batch_size, sem="relaxed")
        finish(y + b, extra, rows, batch, N, batch_size, out, positions, vocabulary, first_token, sampling, THEN,
               ROWS_AXIS=1)

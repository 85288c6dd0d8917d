"""What stands behind a product of a decode step, in the same kernel: bias, GELU, the residual, or the argmax."""
from __future__ import annotations

import triton
import triton.language as tl

from ..argmax import LEAST_KEY, order_key
from ..gumbel import gumbel_of, row_hash


@triton.jit
def gelu_tanh(x):
    """0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)"""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def prepare(rows, batch, N, batch_size, residual, temperature, THEN: tl.constexpr):
    """What `finish` needs beside y, loaded before the product so that it need not be waited for after it.

    "add": the residual (ROWS, B); "argmax": the temperature; otherwise nothing
    """
    extra = 0.0
    if THEN == "add":
        inside = (rows < N) & (batch < batch_size)
        extra = tl.load(residual + batch * N + rows, mask=inside, other=0.0).to(tl.float32)
    elif THEN == "argmax":
        extra = tl.load(temperature)
    return extra


@triton.jit
def finish(y, extra, rows, batch, N, batch_size, out, positions, vocabulary, first_token, seeds, THEN: tl.constexpr,
           ROWS_AXIS: tl.constexpr = 0):
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
    elif THEN == "argmax":
        token = rows + first_token
        if extra > 0:  # Gumbel-max: the largest of logits + temperature * noise is a fair draw
            seed = tl.load(seeds + batch, mask=batch < batch_size, other=0)
            position = tl.load(positions + batch, mask=batch < batch_size, other=0) + 1
            y += extra * gumbel_of(row_hash(seed, position), token)
        key = tl.where((rows < N) & (token < vocabulary), order_key(y, token), LEAST_KEY)
        column = tl.max(batch, ROWS_AXIS)
        tl.store(out + tl.program_id(0) * batch_size + column, tl.max(key, ROWS_AXIS), mask=column < batch_size)

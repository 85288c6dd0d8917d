"""Gumbel noise inside a kernel: `noise.py`'s, bit for bit, a hash of (seed, position, token)."""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hash32(x):
    """Wellons' lowbias32 over uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_hash(seed, position):
    """seed int64, position int64 -> uint32: all 64 bits of the seed count."""
    high = (seed >> 32).to(tl.uint32)
    return hash32(hash32(seed.to(tl.uint32) ^ hash32(position.to(tl.uint32))) ^ hash32(high))


@triton.jit
def uniform_bits(row, token):
    """23 bits, uint32: those that the noise of a token (int32) is made of."""
    return hash32(row ^ token.to(tl.uint32, bitcast=True)) >> 9


@triton.jit
def gumbel_of(row, token):
    u = uniform_bits(row, token).to(tl.float32)
    return -tl.log(-tl.log((u + 0.5) / 8388608.0))

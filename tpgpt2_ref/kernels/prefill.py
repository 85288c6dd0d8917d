"""What stands between the matrix products of a prefill: one pass over memory each, where torch takes two to four.

    add_norm       residual + y, and its LayerNorm: both are read later, so both are written
    write_cache    k and v out of c_attn's (T, 3D/n) rows into their slots of the paged cache
The products themselves are cuBLAS's, with the bias, and the GELU, in their epilogues. Twins: `plain.py`.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def add_norm_kernel(x, y, weight, bias, eps, total, normed, D: tl.constexpr, WIDTH: tl.constexpr, ADD: tl.constexpr,
                    PDL: tl.constexpr):
    """A program takes one token: x, y (T, D) -> total = x + y and its LayerNorm, normed, (T, D) each."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64) * D
    column = tl.arange(0, WIDTH)
    inside = column < D
    value = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = (value + tl.load(y + row + column, mask=inside, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + row + column, added, mask=inside)
        value = added.to(tl.float32)
    mean = tl.sum(value, 0) / D
    centred = tl.where(inside, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / D + eps)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row + column, centred * scale * gain + shift, mask=inside)


@triton.jit
def write_cache_kernel(qkv, slot_mapping, kv, kv_stride, qkv_stride, W: tl.constexpr, WIDTH: tl.constexpr):
    """A program takes k or v of one token: qkv (T, 3W), slot_mapping (T,) -> kv (2, slots, W)."""
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)  # part 0: k, 1: v
    column = tl.arange(0, WIDTH)
    value = tl.load(qkv + token * qkv_stride + (part + 1) * W + column, mask=column < W, other=0.0)
    tl.store(kv + part * kv_stride + tl.load(slot_mapping + token) * W + column, value, mask=column < W)


def add_norm(x: torch.Tensor, y: torch.Tensor | None, norm, pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """x (T, D), y (T, D) or None -> x + y, and its LayerNorm."""
    total, normed = x if y is None else torch.empty_like(x), torch.empty_like(x)
    d = x.shape[1]
    add_norm_kernel[(x.shape[0],)](x, x if y is None else y, norm.weight, norm.bias, norm.eps, total, normed, D=d,
                                   WIDTH=triton.next_power_of_2(d), ADD=y is not None, PDL=pdl, num_warps=4,
                                   launch_pdl=pdl)
    return total, normed


def write_cache(qkv: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """k and v of qkv (T, 3D/n) -> their slots (T,) of one layer's cache."""
    w = qkv.shape[1] // 3
    write_cache_kernel[(qkv.shape[0], 2)](qkv, slot_mapping, kv_cache, kv_cache.stride(0), qkv.stride(0), W=w,
                                          WIDTH=triton.next_power_of_2(w), num_warps=2)

"""Attention of one new token a sequence over its pages: one program a sequence and head.

    out[b, h] = sum_t softmax_t(q[b, h] . k[t] / sqrt(d)) v[t],  t = 0 .. positions[b]

All cached tokens but the newest were written in steps before this one, so a program asks for its first BLOCK keys
and values before it waits for the kernel that writes q and the newest k and v (programmatic dependent launch).
The softmax runs along with the tokens (Milakov and Gimelshein 2018, arXiv 1805.02867), from the newest backwards.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .state import DecodeState


@triton.jit
def load_tokens(kv, kv_stride, table_row, token, end, head, width, column, PAGE: tl.constexpr):
    """k and v (BLOCK, d) of the tokens (BLOCK,), zeros from `end` on."""
    page = tl.load(table_row + token // PAGE, mask=token < end, other=0)
    slot = page.to(tl.int64) * PAGE + token % PAGE
    at = kv + slot[:, None] * width + head + column[None, :]
    inside = (token < end)[:, None]
    return tl.load(at, mask=inside, other=0.0), tl.load(at + kv_stride, mask=inside, other=0.0)


@triton.jit
def attend(query, k, v, inside, top, total, acc):
    """Take the tokens of one block into the running softmax: `top` score, `total` weight, weighted sum `acc` (d,)."""
    score = tl.where(inside, tl.sum(query[None, :] * k.to(tl.float32), 1), float("-inf"))  # (BLOCK,)
    higher = tl.maximum(top, tl.max(score, 0))
    p = tl.exp2(score - higher)
    keep = tl.exp2(top - higher)
    return higher, total * keep + tl.sum(p, 0), acc * keep + tl.sum(p[:, None] * v.to(tl.float32), 0)


@triton.jit
def decode_attention_kernel(q, kv, kv_stride, table, table_stride, positions, out, scale, width,
                            HEAD: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
    head, b = tl.program_id(0) * HEAD, tl.program_id(1)
    column = tl.arange(0, HEAD)
    token = tl.arange(0, BLOCK)
    table_row = table + b * table_stride
    end = tl.load(positions + b).to(tl.int32)  # cached tokens; the newest stands at `end`
    k, v = load_tokens(kv, kv_stride, table_row, token, end, head, width, column, PAGE)
    page = tl.load(table_row + end // PAGE)
    newest = kv + (page.to(tl.int64) * PAGE + end % PAGE) * width + head + column
    if PDL:
        gdc_wait()
    query = tl.load(q + b * width + head + column).to(tl.float32) * (scale * 1.4426950408889634)  # e^x = 2^(x log2 e)
    top = tl.sum(query * tl.load(newest).to(tl.float32), 0)
    acc = tl.load(newest + kv_stride).to(tl.float32)  # (d,)
    top, total, acc = attend(query, k, v, token < end, top, 1.0, acc)
    for start in range(BLOCK, end, BLOCK):
        k, v = load_tokens(kv, kv_stride, table_row, start + token, end, head, width, column, PAGE)
        top, total, acc = attend(query, k, v, start + token < end, top, total, acc)
    tl.store(out + b * width + head + column, acc / total)


def attention(q: torch.Tensor, kv_cache: torch.Tensor, state: DecodeState, pdl: bool = False, block: int = 128,
              warps: int = 4) -> torch.Tensor:
    """q (B, D/n) over this layer's cache, the newest token included -> (B, D/n)."""
    heads, head_size = kv_cache.shape[-2:]
    out = torch.empty_like(q)
    decode_attention_kernel[(heads, q.shape[0])](
        q, kv_cache, kv_cache.stride(0), state.block_table, state.block_table.stride(0), state.positions, out,
        head_size**-0.5, heads * head_size, HEAD=head_size, BLOCK=block, PAGE=state.block_size, PDL=pdl,
        num_warps=warps, launch_pdl=pdl)
    return out

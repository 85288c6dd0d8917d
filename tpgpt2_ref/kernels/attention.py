"""Attention of one new token a sequence over its pages, in one kernel however long the sequences are.

    out[b, h] = sum_t softmax_t(q[b, h] . k[t] / sqrt(d)) v[t],  t = 0 .. positions[b]

A program takes one sequence, one head and BLOCK tokens ("flash decoding", Dao et al. 2023). All cached tokens but the
newest were written in steps before this one, so it asks for its keys and values before it waits for the kernel that
writes q and the newest k and v (programmatic dependent launch). Programs beyond a sequence's end leave at once; a
sequence of one block is done by one program. Otherwise each leaves its weighted sum, and the last to arrive adds up.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .state import DecodeState
from .tiles import measured_for


@triton.jit
def decode_attention_kernel(q, kv, kv_stride, table, table_stride, positions, out, sums, weights, arrived, scale, width,
                            HEAD: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PAGE: tl.constexpr,
                            PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
    head, b, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    newest = tl.load(positions + b).to(tl.int32)
    blocks = newest // BLOCK + 1  # that hold tokens
    if block < blocks:
        token = block * BLOCK + tl.arange(0, BLOCK)
        column = tl.arange(0, HEAD)
        page = tl.load(table + b * table_stride + token // PAGE, mask=token <= newest, other=0)
        slot = page.to(tl.int64) * PAGE + token % PAGE
        at = kv + slot[:, None] * width + (head * HEAD + column)[None, :]
        k = tl.load(at, mask=(token < newest)[:, None], other=0.0)  # (BLOCK, d)
        v = tl.load(at + kv_stride, mask=(token < newest)[:, None], other=0.0)
        if PDL:
            gdc_wait()
        k = tl.load(at, mask=(token == newest)[:, None], other=k)
        v = tl.load(at + kv_stride, mask=(token == newest)[:, None], other=v)
        query = tl.load(q + b * width + head * HEAD + column).to(tl.float32) * (scale * 1.4426950408889634)
        score = tl.sum(query[None, :] * k.to(tl.float32), 1)  # (BLOCK,), times log2 e: e^x = 2^(x log2 e)
        score = tl.where(token <= newest, score, float("-inf"))
        top = tl.max(score, 0)
        p = tl.exp2(score - top)
        total = tl.sum(p, 0)
        acc = tl.sum(p[:, None] * v.to(tl.float32), 0)  # (d,)
        here = out + b * width + head * HEAD + column
        if blocks == 1:
            tl.store(here, acc / total)
        else:
            sequence = b * tl.num_programs(0) + head
            tl.store(sums + (sequence * BLOCKS + block) * HEAD + column, acc)
            tl.store(weights + (sequence * BLOCKS + block) * 2, top)
            tl.store(weights + (sequence * BLOCKS + block) * 2 + 1, total)
            tl.debug_barrier()  # all of this program's stores come before its arrival
            if tl.atomic_add(arrived + sequence, 1, sem="acq_rel") == blocks - 1:
                tl.store(arrived + sequence, 0)  # for the next layer
                each = tl.arange(0, BLOCKS)
                at_each = weights + (sequence * BLOCKS + each) * 2
                tops = tl.load(at_each, mask=each < blocks, other=float("-inf"), volatile=True)
                totals = tl.load(at_each + 1, mask=each < blocks, other=0.0, volatile=True)
                share = tl.exp2(tops - tl.max(tops, 0))  # (BLOCKS,)
                parts = tl.load(sums + (sequence * BLOCKS + each[:, None]) * HEAD + column[None, :],
                                mask=(each < blocks)[:, None], other=0.0, volatile=True)
                tl.store(here, tl.sum(parts * share[:, None], 0) / tl.sum(totals * share, 0))


def attention(q: torch.Tensor, kv_cache: torch.Tensor, state: DecodeState, pdl: bool = False,
              tile: dict | None = None) -> torch.Tensor:
    """q (B, D/n) over this layer's cache, the newest token included -> (B, D/n)."""
    heads, head_size = kv_cache.shape[-2:]
    block, warps = (tile or measured_for(state.batch)["attention"]).values()
    blocks = triton.cdiv(state.block_table.shape[1] * state.block_size, block)
    out = torch.empty_like(q)
    places = q.shape[0] * heads * triton.next_power_of_2(blocks)
    sums = q.new_empty(places, head_size, dtype=torch.float32)
    weights = q.new_empty(places, 2, dtype=torch.float32)
    decode_attention_kernel[(heads, q.shape[0], blocks)](
        q, kv_cache, kv_cache.stride(0), state.block_table, state.block_table.stride(0), state.positions, out, sums,
        weights, state.arrived, head_size**-0.5, heads * head_size, HEAD=head_size, BLOCK=block,
        BLOCKS=triton.next_power_of_2(blocks), PAGE=state.block_size, PDL=pdl, num_warps=warps, launch_pdl=pdl)
    return out

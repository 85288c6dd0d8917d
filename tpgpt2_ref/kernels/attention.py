"""Attention of one new token a sequence over its pages, in one kernel however long the sequences are.

    out[b, h] = sum_t softmax_t(q[b, h] . k[t] / sqrt(d)) v[t],  t = 0 .. positions[b]

A program takes one sequence, one head and SPAN tokens ("flash decoding", Dao et al. 2023), a block at a time. Tensor
cores want 16 queries: they get the same one 16 times, which is still a fraction of the multiply-adds' instructions.
All cached tokens but the newest were written in steps before this one, so a program asks for their keys and values
before it waits for the kernel that writes q and the newest k and v (programmatic dependent launch). A sequence of one
span is done by one program. Otherwise each leaves its weighted sum, and the last to arrive adds up.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .prefetch import prefetch
from .state import DecodeState
from .tiles import measured_for

LOWEST = tl.constexpr(-1e30)  # finite, so that a block without tokens needs no case of its own
M = tl.constexpr(16)  # rows of the smallest product that tensor cores take


@triton.jit
def row_of(token, table, end, width, PAGE: tl.constexpr):
    """Offsets of tokens' rows in the cache."""
    page = tl.load(table + token // PAGE, mask=token < end, other=0)
    return (page.to(tl.int64) * PAGE + token % PAGE) * width


@triton.jit
def absorb(query, k, v, inside, scale, top, total, acc):
    """A block of tokens: the scores' maximum so far (M,), the sum of the weights (M,), the weighted values (M, d)."""
    score = tl.where(inside, tl.dot(query, tl.trans(k), input_precision="ieee") * scale, LOWEST)  # (M, BLOCK)
    new_top = tl.maximum(top, tl.max(score, 1))
    p = tl.where(inside, tl.exp2(score - new_top[:, None]), 0.0)
    old = tl.exp2(top - new_top)
    acc = tl.dot(p.to(v.dtype), v, acc * old[:, None], input_precision="ieee")
    return new_top, total * old + tl.sum(p, 1), acc


@triton.jit
def decode_attention_kernel(q, kv, kv_stride, table, table_stride, positions, out, sums, weights, arrived, scale, width,
                            HEAD: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr, SPANS: tl.constexpr,
                            STAGES: tl.constexpr, PAGE: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
    head, b, span = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    newest = tl.load(positions + b).to(tl.int32)
    spans = tl.maximum(tl.cdiv(newest, SPAN), 1)  # that hold tokens
    if span < spans:
        start, end = span * SPAN, tl.minimum(span * SPAN + SPAN, newest)
        column = tl.arange(0, HEAD)
        table += b * table_stride
        kv += head * HEAD
        token = start + tl.arange(0, BLOCK)
        inside = (token < end)[:, None]
        at = kv + row_of(token, table, end, width, PAGE)[:, None] + column[None, :]
        k = tl.load(at, mask=inside, other=0.0)  # (BLOCK, d)
        v = tl.load(at + kv_stride, mask=inside, other=0.0)
        at_newest = kv + row_of(newest, table, newest + 1, width, PAGE) + column[None, :]
        if PDL:
            if SPAN > BLOCK:
                later = tl.minimum(start + BLOCK + tl.arange(0, SPAN), newest)
                line = kv + row_of(later, table, end, width, PAGE)
                prefetch(line)
                prefetch(line + kv_stride)
            gdc_wait()
        at_q = q + b * width + head * HEAD + column[None, :]
        query = tl.load(at_q + 0 * tl.arange(0, M)[:, None])  # (M, d)
        q_alone, newest_k, newest_v = tl.load(at_q), tl.load(at_newest), tl.load(at_newest + kv_stride)  # (1, d)
        scale *= 1.4426950408889634  # log2 e: e^x = 2^(x log2 e)
        zero = tl.zeros((M,), tl.float32)
        top, total, acc = absorb(query, k, v, (token < end)[None, :], scale, zero + LOWEST, zero,
                                 tl.zeros((M, HEAD), tl.float32))
        if SPAN > BLOCK:
            for t in tl.range(start + BLOCK, end, BLOCK, num_stages=STAGES):
                token = t + tl.arange(0, BLOCK)
                inside = (token < end)[:, None]
                at = kv + row_of(token, table, end, width, PAGE)[:, None] + column[None, :]
                k = tl.load(at, mask=inside, other=0.0)
                v = tl.load(at + kv_stride, mask=inside, other=0.0)
                top, total, acc = absorb(query, k, v, (token < end)[None, :], scale, top, total, acc)

        score = tl.sum(q_alone.to(tl.float32) * newest_k.to(tl.float32), 1) * scale
        score = tl.where(span == 0, score, LOWEST)  # (1,): the newest token is the first program's
        peak = tl.maximum(tl.max(top, 0), score)
        share, p = tl.exp2(tl.max(top, 0) - peak), tl.exp2(score - peak)
        total = tl.max(total, 0) * share + p  # (1,): all M rows are the same
        acc = tl.max(acc, 0)[None, :] * share[:, None]
        acc += p[:, None] * newest_v.to(tl.float32)  # (1, d)
        here = out + b * width + head * HEAD + column[None, :]
        if spans == 1:
            tl.store(here, acc / total[:, None])
        else:
            sequence = b * tl.num_programs(0) + head
            one = tl.arange(0, 1)
            tl.store(sums + (sequence * SPANS + span) * HEAD + column[None, :], acc)
            tl.store(weights + (sequence * SPANS + span) * 2 + one, peak)
            tl.store(weights + (sequence * SPANS + span) * 2 + 1 + one, total)
            tl.debug_barrier()  # all of this program's stores come before its arrival
            if tl.atomic_add(arrived + sequence, 1, sem="acq_rel") == spans - 1:
                tl.store(arrived + sequence, 0)  # for the next layer
                each = tl.arange(0, SPANS)
                at_each = weights + (sequence * SPANS + each) * 2
                peaks = tl.load(at_each, mask=each < spans, other=LOWEST, volatile=True)
                totals = tl.load(at_each + 1, mask=each < spans, other=0.0, volatile=True)
                of_each = tl.exp2(peaks - tl.max(peaks, 0))  # (SPANS,)
                parts = tl.load(sums + (sequence * SPANS + each[:, None]) * HEAD + column[None, :],
                                mask=(each < spans)[:, None], other=0.0, volatile=True)
                total_of_all = tl.sum(totals * of_each, 0)
                tl.store(here, tl.sum(parts * of_each[:, None], 0)[None, :] / total_of_all)


def attention(q: torch.Tensor, kv_cache: torch.Tensor, state: DecodeState, pdl: bool = False,
              tile: dict | None = None) -> torch.Tensor:
    """q (B, D/n) over this layer's cache, the newest token included -> (B, D/n)."""
    heads, head_size = kv_cache.shape[-2:]
    tile = dict(tile or measured_for(state.batch)["attention"])
    spans = triton.cdiv(state.block_table.shape[1] * state.block_size, tile["SPAN"])
    out = torch.empty_like(q)
    places = q.shape[0] * heads * triton.next_power_of_2(spans)
    sums = q.new_empty(places, head_size, dtype=torch.float32)
    weights = q.new_empty(places, 2, dtype=torch.float32)
    decode_attention_kernel[(heads, q.shape[0], spans)](
        q, kv_cache, kv_cache.stride(0), state.block_table, state.block_table.stride(0), state.positions, out, sums,
        weights, state.arrived, head_size**-0.5, heads * head_size, HEAD=head_size,
        SPANS=triton.next_power_of_2(spans), PAGE=state.block_size, PDL=pdl, launch_pdl=pdl, **tile)
    return out

"""Attention of one new token a sequence over its pages, in one kernel however long the sequences are.

    out[b, h] = sum_t softmax_t(q[b, h] . k[t] / sqrt(d)) v[t],  t = 0 .. positions[b]

A program takes one sequence, one head and a split of its tokens (split-KV, "flash decoding", Dao et al. 2023). All
tokens in the cache were written in steps before this one, so a program asks for their keys and values before it waits
for the kernel that computes q and the newest k and v (programmatic dependent launch). Those two it writes into the
cache itself: it knows their page, and has nothing else to store.

    vector        a split is one block: all of it is on its way before the wait, the rest is multiply-adds in registers
    tensor_core   where the multiply-adds' instructions would take the time: tensor cores, block after block. They want
                  16 queries and get the same one 16 times; the first blocks are on their way before the wait

A sequence of one split is done by one program. Otherwise each leaves its weighted sum, and the last to arrive adds up.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .state import DecodeState
from .tiles import TensorCore, Vector, attention_tile

LOG2_E = tl.constexpr(1.4426950408889634)  # e^x = 2^(x log2 e)
LOWEST = tl.constexpr(-1e30)  # finite, so that a block without tokens needs no case of its own
M = tl.constexpr(16)  # rows of the smallest product that tensor cores take


@triton.jit
def row_of(token, table, end, width, PAGE: tl.constexpr):
    """Offsets of tokens' rows in the cache."""
    page = tl.load(table + token // PAGE, mask=token < end, other=0)
    return (page.to(tl.int64) * PAGE + token % PAGE) * width


@triton.jit
def combine(acc, top, total, here, sums, weights, arrived, sequence, split, splits, HEAD: tl.constexpr,
          SPLITS: tl.constexpr):
    """A split's weighted sum acc (d,), its highest score and its sum of weights -> the answer, `here` (d,)."""
    column = tl.arange(0, HEAD)
    if splits == 1:
        tl.store(here, acc / total)
    else:
        tl.store(sums + (sequence * SPLITS + split) * HEAD + column, acc)
        tl.store(weights + (sequence * SPLITS + split) * 2, top)
        tl.store(weights + (sequence * SPLITS + split) * 2 + 1, total)
        tl.debug_barrier()  # all of this program's stores come before its arrival
        if tl.atomic_add(arrived + sequence, 1, sem="acq_rel") == splits - 1:
            tl.store(arrived + sequence, 0)  # for the next layer
            each = tl.arange(0, SPLITS)
            at_each = weights + (sequence * SPLITS + each) * 2
            tops = tl.load(at_each, mask=each < splits, other=LOWEST, volatile=True)
            totals = tl.load(at_each + 1, mask=each < splits, other=0.0, volatile=True)
            share = tl.exp2(tops - tl.max(tops, 0))  # (SPLITS,)
            accs = tl.load(sums + (sequence * SPLITS + each[:, None]) * HEAD + column[None, :],
                           mask=(each < splits)[:, None], other=0.0, volatile=True)
            tl.store(here, tl.sum(accs * share[:, None], 0) / tl.sum(totals * share, 0))


@triton.jit
def vector_kernel(qkv, kv, kv_stride, table, table_stride, positions, out, sums, weights, arrived, scale, width,
               HEAD: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, PAGE: tl.constexpr, PDL: tl.constexpr):
    """qkv (B, 3D/n), kv (2, pages, PAGE, heads, d), table (B, pages), positions (B,) -> out (B, D/n).

    sums (B * heads * SPLITS, d), weights (B * heads * SPLITS, 2) and arrived (B * heads,) are where splits meet.
    """
    if PDL:
        gdc_launch_dependents()
    head, b, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    newest = tl.load(positions + b).to(tl.int32)
    splits = newest // BLOCK + 1  # that hold tokens
    if split < splits:
        column = tl.arange(0, HEAD)
        token = split * BLOCK + tl.arange(0, BLOCK)
        row = row_of(token, table + b * table_stride, newest + 1, width, PAGE)
        at = kv + row[:, None] + (head * HEAD + column)[None, :]
        k = tl.load(at, mask=(token < newest)[:, None], other=0.0)  # (BLOCK, d)
        v = tl.load(at + kv_stride, mask=(token < newest)[:, None], other=0.0)
        if PDL:
            gdc_wait()
        at_q = qkv + b * 3 * width + head * HEAD + column  # k and v of the newest token: width and 2 * width further
        mine = (token == newest)[:, None]
        k = tl.load(at_q[None, :] + (width + 0 * token)[:, None], mask=mine, other=k)
        v = tl.load(at_q[None, :] + (2 * width + 0 * token)[:, None], mask=mine, other=v)
        tl.store(at, k, mask=mine)
        tl.store(at + kv_stride, v, mask=mine)
        query = tl.load(at_q).to(tl.float32) * (scale * LOG2_E)
        score = tl.sum(query[None, :] * k.to(tl.float32), 1)  # (BLOCK,)
        score = tl.where(token <= newest, score, LOWEST)
        top = tl.max(score, 0)
        p = tl.exp2(score - top)
        acc = tl.sum(p[:, None] * v.to(tl.float32), 0)  # (d,)
        combine(acc, top, tl.sum(p, 0), out + b * width + head * HEAD + column, sums, weights, arrived,
              b * tl.num_programs(0) + head, split, splits, HEAD, SPLITS)


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
def tensor_core_kernel(qkv, kv, kv_stride, table, table_stride, positions, out, sums, weights, arrived, scale, width,
                HEAD: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
                PAGE: tl.constexpr, PDL: tl.constexpr):
    """qkv (B, 3D/n), kv (2, pages, PAGE, heads, d), table (B, pages), positions (B,) -> out (B, D/n).

    sums (B * heads * SPLITS, d), weights (B * heads * SPLITS, 2) and arrived (B * heads,) are where splits meet.
    """
    if PDL:
        gdc_launch_dependents()
    head, b, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    newest = tl.load(positions + b).to(tl.int32)
    splits = tl.maximum(tl.cdiv(newest, SPAN), 1)  # the newest token comes on top, in the first split
    if split < splits:
        start, end = split * SPAN, tl.minimum(split * SPAN + SPAN, newest)
        column = tl.arange(0, HEAD)
        table += b * table_stride
        kv += head * HEAD
        at_newest = kv + row_of(newest, table, newest + 1, width, PAGE) + column
        at_q = qkv + b * 3 * width + head * HEAD + column  # k and v of the newest token: width and 2 * width further
        scale *= LOG2_E
        query = tl.zeros((M, HEAD), qkv.dtype.element_ty)
        top, total = tl.zeros((M,), tl.float32) + LOWEST, tl.zeros((M,), tl.float32)
        acc = tl.zeros((M, HEAD), tl.float32)
        for t in tl.range(start, end, BLOCK, num_stages=STAGES):
            if t == start:  # in the loop, so that its loads, which are issued stages ahead, come before the wait
                if PDL:
                    gdc_wait()
                query = tl.load(at_q[None, :] + 0 * tl.arange(0, M)[:, None])  # (M, d)
            token = t + tl.arange(0, BLOCK)
            at = kv + row_of(token, table, end, width, PAGE)[:, None] + column[None, :]
            k = tl.load(at, mask=(token < end)[:, None], other=0.0)  # (BLOCK, d)
            v = tl.load(at + kv_stride, mask=(token < end)[:, None], other=0.0)
            top, total, acc = absorb(query, k, v, (token < end)[None, :], scale, top, total, acc)
        if PDL:  # a sequence of one token has not waited yet
            gdc_wait()
        q, newest_k, newest_v = tl.load(at_q), tl.load(at_q + width), tl.load(at_q + 2 * width)  # (d,)
        if split == 0:
            tl.store(at_newest, newest_k)
            tl.store(at_newest + kv_stride, newest_v)
        score = tl.sum(q.to(tl.float32) * newest_k.to(tl.float32), 0) * scale
        score = tl.where(split == 0, score, LOWEST)
        peak = tl.maximum(tl.max(top, 0), score)
        share, p = tl.exp2(tl.max(top, 0) - peak), tl.exp2(score - peak)
        acc = tl.max(acc, 0) * share + p * newest_v.to(tl.float32)  # (d,): all M rows are the same
        combine(acc, peak, tl.max(total, 0) * share + p, out + b * width + head * HEAD + column, sums, weights, arrived,
              b * tl.num_programs(0) + head, split, splits, HEAD, SPLITS)


def attention(qkv: torch.Tensor, kv_cache: torch.Tensor, state: DecodeState, pdl: bool = False,
              tile: Vector | TensorCore | None = None) -> torch.Tensor:
    """qkv (B, 3D/n): k and v go into this layer's cache, q attends to all of it -> (B, D/n)."""
    heads, head_size = kv_cache.shape[-2:]
    tile = tile or attention_tile(state.batch, heads)
    kernel, span = (tensor_core_kernel, tile.SPAN) if isinstance(tile, TensorCore) else (vector_kernel, tile.BLOCK)
    splits = triton.cdiv(state.block_table.shape[1] * state.block_size, span)
    batch = len(qkv)
    places = batch * heads * triton.next_power_of_2(splits)
    sums = qkv.new_empty(places, head_size, dtype=torch.float32)
    weights = qkv.new_empty(places, 2, dtype=torch.float32)
    out = qkv.new_empty(batch, heads * head_size)
    kernel[(heads, batch, splits)](
        qkv, kv_cache, kv_cache.stride(0), state.block_table, state.block_table.stride(0), state.positions, out, sums,
        weights, state.arrived, head_size**-0.5, heads * head_size, HEAD=head_size,
        SPLITS=triton.next_power_of_2(splits), PAGE=state.block_size, PDL=pdl, launch_pdl=pdl, **vars(tile))
    return out

"""Attention over a paged KV cache in Triton: Diagram 1's box "Triton", short enough to read.

`prefill_kernel` is FlashAttention (Dao et al., arXiv 2205.14135): a tile of queries walks over tiles of keys with
a running softmax, so no score ever leaves the chip. `decode_kernel` has one query a sequence, too little to fill
a GPU, so it splits the keys over programs ("split-KV", FlashDecoding); the last program to finish merges the parts.
A page is looked up, never copied: key number i of a sequence lies in slot table[i // PAGE] * PAGE + i % PAGE.
The plain twin is `attention/backends/naive.py`. Exponentials are powers of two: scale carries log2(e).
"""
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl


@triton.jit
def prefill_kernel(q_ptr, k_ptr, v_ptr, out_ptr, start_ptr, len_ptr, table_ptr, scale, q_stride, kv_stride, out_stride,
                   table_stride, PAGE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
                   BLOCK_N: tl.constexpr):
    """One program: BLOCK_M queries of one head of one sequence. PAGE 0: k and v are the new tokens, not paged."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    first = tl.load(start_ptr + sequence)
    queries = tl.load(start_ptr + sequence + 1) - first
    keys = tl.load(len_ptr + sequence)
    block = tl.cdiv(queries, BLOCK_M) - 1 - tl.program_id(0)  # the longest rows first
    if block < 0:
        return
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    q_mask = (rows < queries)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + (first + rows)[:, None].to(tl.int64) * q_stride + head * D + d[None, :], q_mask, 0.0)
    position = keys - queries + rows  # of each query in its sequence: it sees keys 0..position

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for begin in range(0, tl.minimum(keys, keys - queries + (block + 1) * BLOCK_M), BLOCK_N):
        i = begin + tl.arange(0, BLOCK_N)
        if PAGE:
            slot = tl.load(table_ptr + sequence * table_stride + i // PAGE, i < keys, 0).to(tl.int64) * PAGE + i % PAGE
        else:
            slot = (first + i).to(tl.int64)
        kv_mask = (i < keys)[:, None] & (d < D)[None, :]
        kv = slot[:, None] * kv_stride + head * D + d[None, :]
        k = tl.load(k_ptr + kv, kv_mask, 0.0).to(q.dtype)
        s = tl.dot(q, k.T, input_precision="ieee") * scale
        s = tl.where(i[None, :] <= position[:, None], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        v = tl.load(v_ptr + kv, kv_mask, 0.0).to(q.dtype)
        acc = tl.dot(p.to(q.dtype), v, acc * shrink[:, None], input_precision="ieee")
        total = total * shrink + tl.sum(p, 1)
        m = m_new
    out = out_ptr + (first + rows)[:, None].to(tl.int64) * out_stride + head * D + d[None, :]
    tl.store(out, acc / total[:, None], q_mask)


@triton.jit
def decode_kernel(q_ptr, k_ptr, v_ptr, out_ptr, part_ptr, arrived_ptr, len_ptr, table_ptr, scale, q_stride, kv_stride,
                  out_stride, table_stride, PAGE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
                  BLOCK_N: tl.constexpr, SPLITS: tl.constexpr):
    """One program: one query, one head, every key of one split."""
    head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    keys = tl.load(len_ptr + sequence)
    span = tl.cdiv(tl.cdiv(keys, SPLITS), BLOCK_N) * BLOCK_N
    d = tl.arange(0, BLOCK_D)
    q = tl.load(q_ptr + sequence * q_stride + head * D + d, d < D, 0.0).to(tl.float32) * scale

    m = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for begin in range(split * span, tl.minimum((split + 1) * span, keys), BLOCK_N):
        i = begin + tl.arange(0, BLOCK_N)
        slot = tl.load(table_ptr + sequence * table_stride + i // PAGE, i < keys, 0).to(tl.int64) * PAGE + i % PAGE
        kv_mask = (i < keys)[:, None] & (d < D)[None, :]
        kv = slot[:, None] * kv_stride + head * D + d[None, :]
        k = tl.load(k_ptr + kv, kv_mask, 0.0).to(tl.float32)
        v = tl.load(v_ptr + kv, kv_mask, 0.0).to(tl.float32)
        s = tl.where(i < keys, tl.sum(q[None, :] * k, 1), float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 0))
        p = tl.exp2(s - m_new)
        shrink = tl.exp2(m - m_new)
        acc = acc * shrink + tl.sum(p[:, None] * v, 0)
        total = total * shrink + tl.sum(p, 0)
        m = m_new

    out = out_ptr + sequence * out_stride + head * D + d
    if SPLITS == 1:
        tl.store(out, acc / total, d < D)
    else:  # leave (acc, m, total) behind; the last of this query's programs merges them
        pair = sequence * tl.num_programs(0) + head
        parts = part_ptr + pair * SPLITS * (BLOCK_D + 2)
        mine = parts + split * (BLOCK_D + 2)
        tl.store(mine + d, acc)
        tl.store(mine + BLOCK_D, m)
        tl.store(mine + BLOCK_D + 1, total)
        tl.debug_barrier()
        if tl.atomic_add(arrived_ptr + pair, 1) == SPLITS - 1:
            part = parts + tl.arange(0, SPLITS) * (BLOCK_D + 2)
            acc_s = tl.load(part[:, None] + d[None, :], cache_modifier=".cg")
            m_s = tl.load(part + BLOCK_D, cache_modifier=".cg")
            weight = tl.exp2(m_s - tl.max(m_s, 0))
            total = tl.sum(weight * tl.load(part + BLOCK_D + 1, cache_modifier=".cg"), 0)
            tl.store(out, tl.sum(weight[:, None] * acc_s, 0) / total, d < D)
            tl.store(arrived_ptr + pair, 0)  # ready for the next layer


def paged_prefill(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: torch.Tensor, lens: torch.Tensor,
                  table: torch.Tensor, max_query_len: int, scale: float, page: int) -> torch.Tensor:
    """q (T, heads, d); k, v the cache (blocks, page, heads, d), or with page 0 the new tokens (T, heads, d)."""
    heads, d = q.shape[1:]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    block_m = 64 if max_query_len > 16 else 16
    row = d * q.dtype.itemsize  # bytes; the tiles below fit in 99 KiB of shared memory up to 512
    prefill_kernel[triton.cdiv(max_query_len, block_m), heads, len(lens)](
        q, k, v, out, start, lens, table, scale * math.log2(math.e), q.stride(0), k.stride(-3), out.stride(0),
        table.stride(0), PAGE=page, D=d, BLOCK_D=triton.next_power_of_2(d), BLOCK_M=block_m,
        BLOCK_N=64 if row <= 128 else 32, num_warps=4, num_stages=3 if row <= 256 else 2)
    return out


def decode_splits(pairs: int, max_seq_len: int, d: int, multiprocessors: int) -> int:
    """Programs a query, a power of two: 12 for each multiprocessor, but no fewer than 64 keys each, and no more parts
    than one warp's registers hold when it merges them."""
    wanted = min(12 * multiprocessors // pairs, triton.cdiv(max_seq_len, 64), 4096 // triton.next_power_of_2(d), 64)
    return 1 << max(wanted, 1).bit_length() - 1


def decode_scratch(batch: int, heads: int, d: int, splits: int, device: torch.device):
    """(parts, arrived) for `paged_decode`; every call leaves `arrived` at zero, so all layers share them."""
    return (torch.empty(batch, heads, splits, triton.next_power_of_2(d) + 2, device=device),
            torch.zeros(batch, heads, dtype=torch.int32, device=device))


def paged_decode(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lens: torch.Tensor, table: torch.Tensor,
                 scale: float, parts: torch.Tensor, arrived: torch.Tensor) -> torch.Tensor:
    """q (B, heads, d), one query a sequence; k, v the cache (blocks, page, heads, d) -> (B, heads, d)."""
    batch, heads, d = q.shape
    block_n = (64 if d <= 64 else 32) * 2 // q.dtype.itemsize
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    decode_kernel[heads, parts.shape[2], batch](  # one warp a program: no barrier but the one before the merge
        q, k, v, out, parts, arrived, lens, table, scale * math.log2(math.e), q.stride(0), k.stride(-3), out.stride(0),
        table.stride(0), PAGE=k.shape[1], D=d, BLOCK_D=triton.next_power_of_2(d), BLOCK_N=block_n,
        SPLITS=parts.shape[2], num_warps=1)
    return out

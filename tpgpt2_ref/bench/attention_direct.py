"""The same attention without this package: each kernel's own package, called as its documentation says.

What a backend of ours adds to its kernel is the difference between the two. A direct call has the same tensors. What
its user would compute once a step (schedules, masks, where to gather from) is prepared outside of it, as `build` is;
what every layer needs, such as gathering from pages that the kernel doesn't read, is part of it. The scale is each
package's default, 1 / sqrt(head size). TRITON_ATTN and NAIVE wrap no package, and a direct FLEX_ATTENTION would be the
same compiled function with the same mask. SDPA, which knows no unequal lengths, is called once a sequence.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from ..attention.backends.gather import gather, pack, whole_pages
from .attention_case import Case

Call = Callable[[], torch.Tensor]


def direct(backend, case: Case) -> Call | None:
    """The call, for a first prefill or a decode step with a cache of q's dtype. None: nothing to compare with."""
    meta = case.meta
    if backend.name not in DIRECT or backend.cache_dtype != "auto" or not (meta.no_context or meta.is_decode):
        return None
    return DIRECT[backend.name](backend.load(), case)


def flash_attn_3(package, case: Case) -> Call:
    m, of_vllm = case.meta, {"fa_version": 3} if package.__name__.startswith("vllm") else {}
    if m.no_context:
        return new_tokens(package, case, **of_vllm)
    schedule = package.get_scheduler_metadata(
        m.num_seqs, 1, m.max_seq_len, case.shape[0], case.shape[0], case.shape[1], m.seq_lens, case.q.dtype,
        cu_seqlens_q=m.query_start_loc, page_size=m.block_size, causal=True)
    if of_vllm:
        return pages(package, case, block_table=m.block_table, scheduler_metadata=schedule, **of_vllm)
    return partial(package.flash_attn_with_kvcache, case.q, *case.kv_cache, cache_seqlens=m.seq_lens,
                   page_table=m.block_table, cu_seqlens_q=m.query_start_loc, max_seqlen_q=1, causal=True,
                   scheduler_metadata=schedule)


def flash_attn_4(package, case: Case) -> Call:
    m = case.meta
    call = new_tokens(package, case) if m.no_context else pages(package, case, page_table=m.block_table)
    return lambda: call()[0]  # the second is the logarithm of the softmax's sum


def flash_attn_2(package, case: Case) -> Call:
    m, of_vllm = case.meta, {"fa_version": 2} if package.__name__.startswith("vllm") else {}
    if package.__name__.startswith("torch"):
        return flash_attn_2_of_torch(package, case)
    if m.no_context:
        return new_tokens(package, case, **of_vllm)
    if of_vllm:
        return pages(package, case, block_table=m.block_table, **of_vllm)
    attend = partial(package.flash_attn_with_kvcache, case.q[:, None], cache_seqlens=m.seq_lens, causal=True)
    if m.block_size % 256 == 0:  # the only pages that it reads
        return lambda: attend(*case.kv_cache, block_table=m.block_table)[:, 0]
    return lambda: attend(*whole_pages(case.kv_cache, m))[:, 0]


def flash_attn_2_of_torch(package, case: Case) -> Call:
    m, start, causal = case.meta, case.meta.query_start_loc, {"window_size": (-1, 0)}
    if m.no_context:
        n = m.max_query_len
        return partial(package.varlen_attn, case.q, case.k, case.v, start, start, n, n, **causal)
    packed = pack(m)
    return lambda: package.varlen_attn(case.q, *gather(case.kv_cache, packed), start, packed.start, 1, m.max_seq_len,
                                       **causal)


def new_tokens(package, case: Case, **more) -> Call:
    start, n = case.meta.query_start_loc, case.meta.max_query_len
    return partial(package.flash_attn_varlen_func, case.q, case.k, case.v, cu_seqlens_q=start, cu_seqlens_k=start,
                   max_seqlen_q=n, max_seqlen_k=n, causal=True, **more)


def pages(package, case: Case, **more) -> Call:
    m = case.meta
    return partial(package.flash_attn_varlen_func, case.q, *case.kv_cache, cu_seqlens_q=m.query_start_loc,
                   max_seqlen_q=1, max_seqlen_k=m.max_seq_len, seqused_k=m.seq_lens, causal=True, **more)


def xformers(package, case: Case) -> Call:
    from xformers.ops.fmha import attn_bias, triton_splitk

    attend, m, on = package.memory_efficient_attention_forward, case.meta, {"device": case.q.device}
    ones, lens = [1] * m.num_seqs, m.seq_lens.tolist()
    if m.no_context:
        mask = attn_bias.BlockDiagonalCausalMask.from_seqlens(lens, **on)
        return lambda: attend(case.q[None], case.k[None], case.v[None], mask)[0]
    if case.shape[1] not in (32, 64, 128, 256):  # the head sizes of its one operator that reads pages
        mask, packed = attn_bias.BlockDiagonalCausalFromBottomRightMask.from_seqlens(ones, lens, **on), pack(m)
        return lambda: attend(case.q[None], *(x[None, :sum(lens)] for x in gather(case.kv_cache, packed)), mask)[0]
    mask = attn_bias.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        ones, lens, m.block_table, m.block_size, **on)
    op = type("SplitKV", (triton_splitk.FwOp,), {"BLOCK_N": math.gcd(m.block_size, 64)})  # no tile wider than a page
    return lambda: attend(case.q[None], *case.kv_cache.flatten(1, 2)[:, None], mask, op=op)[0]


def sdpa(package, case: Case) -> Call:
    m, new, lens = case.meta, case.meta.query_start_loc.diff().tolist(), case.meta.seq_lens.tolist()
    tables = [row[: -(-n // m.block_size)].long() for row, n in zip(m.block_table, lens)]

    def one(b: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not m.no_context:
            k, v = (x[tables[b]].flatten(0, 1)[: lens[b]] for x in case.kv_cache)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, tokens, d)
        return package.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=m.no_context)[0].transpose(0, 1)

    new_qkv = list(zip(*(x.split(new) for x in (case.q, case.k, case.v))))  # of each sequence
    return lambda: torch.cat([one(b, *qkv) for b, qkv in enumerate(new_qkv)])


DIRECT = {"FLASH_ATTN_3": flash_attn_3, "FLASH_ATTN_4": flash_attn_4, "FLASH_ATTN_2": flash_attn_2,
          "XFORMERS": xformers, "SDPA": sdpa}

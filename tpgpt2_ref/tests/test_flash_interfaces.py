"""FlashAttention's packages as stand-ins with their documented signatures, computed naively, where there is no GPU.

They hold the calls to the interfaces: what is passed, in which order, over pages or not. The kernels themselves are
held to fp64 in test_backends.py, on a GPU.
"""
from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from tpgpt2_ref.attention.backends.naive import NaiveBackend
from tpgpt2_ref.attention.selector import resolve
from tpgpt2_ref.bench.attention_case import make_case

from .test_backends import BY_HAND


def attend(q, k, v, start_q, start_k, lens, table, scale, causal):
    """Sequence by sequence: keys packed by start_k, or in pages (blocks, page, heads, d) by table and lens."""
    assert causal and (start_k is None) == (lens is not None and table is not None)
    out = torch.empty_like(q)
    for b, (first, last) in enumerate(zip(start_q[:-1], start_q[1:], strict=True)):
        if table is None:
            keys, values = (x[start_k[b]:start_k[b + 1]] for x in (k, v))
        else:
            keys, values = (x[table[b].long()].flatten(0, 1)[: lens[b]] for x in (k, v))
        out[first:last] = NaiveBackend.attend(q[first:last], keys, values, scale)
    return out


def fa3_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
               softmax_scale=None, causal=False):
    return attend(q, k, v, cu_seqlens_q, cu_seqlens_k, None, None, softmax_scale, causal)


def fa3_with_kvcache(q, k_cache, v_cache, *, cache_seqlens, page_table, cu_seqlens_q, max_seqlen_q, softmax_scale=None,
                     causal=False, scheduler_metadata=None):
    assert scheduler_metadata == "schedule"
    return attend(q, k_cache, v_cache, cu_seqlens_q, None, cache_seqlens, page_table, softmax_scale, causal)


def fa3_schedule(batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, cache_seqlens,
                 qkv_dtype=torch.bfloat16, headdim_v=None, cu_seqlens_q=None, *, page_size=None, causal=False):
    assert batch_size == len(cache_seqlens) and max_seqlen_k == cache_seqlens.max() and page_size == 16 and causal
    assert num_heads_q == num_heads_kv == 3 and headdim == 64 and qkv_dtype == torch.float32
    return "schedule"


def fa4_varlen(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None,
               seqused_k=None, page_table=None, softmax_scale=None, causal=False):
    return attend(q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_k, page_table, softmax_scale, causal), None


def vllm_varlen(q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, cu_seqlens_k=None, seqused_k=None, *,
                softmax_scale=None, causal=False, block_table=None, fa_version=2):
    assert fa_version == 2
    return attend(q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_k, block_table, softmax_scale, causal)


def fa2_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, softmax_scale=None, causal=False,
               block_table=None):
    lens = None if block_table is None else cu_seqlens_k.diff()
    start_k = cu_seqlens_k if block_table is None else None
    return attend(q, k, v, cu_seqlens_q, start_k, lens, block_table, softmax_scale, causal)


def fa2_with_kvcache(q, k_cache, v_cache, k=None, v=None, *, cache_seqlens, block_table=None, softmax_scale=None,
                     causal=False):
    assert q.shape[1] == 1
    if block_table is None:  # (B, rows, heads, d): as pages of one sequence each
        block_table = torch.arange(len(q), dtype=torch.int32)[:, None]
    start = torch.arange(len(q) + 1)
    return attend(q[:, 0], k_cache, v_cache, start, None, cache_seqlens, block_table, softmax_scale, causal)[:, None]


FA2 = {"flash_attn": {"flash_attn_varlen_func": fa2_varlen, "flash_attn_with_kvcache": fa2_with_kvcache}}


@pytest.mark.parametrize("name, block_size, modules", [
    ("FLASH_ATTN_3", 16, {"flash_attn_interface": {
        "flash_attn_varlen_func": fa3_varlen, "flash_attn_with_kvcache": fa3_with_kvcache,
        "get_scheduler_metadata": fa3_schedule}}),
    ("FLASH_ATTN_4", 16, {"flash_attn": {}, "flash_attn.cute": {"flash_attn_varlen_func": fa4_varlen}}),
    ("FLASH_ATTN_2", 16, {"vllm": {}, "vllm.vllm_flash_attn": {"flash_attn_varlen_func": vllm_varlen},
                          "vllm.vllm_flash_attn._vllm_fa2_C": {}}),
    ("FLASH_ATTN_2", 16, FA2), ("FLASH_ATTN_2", 256, FA2),
], ids=["3", "4", "2 of vLLM", "2 gathering", "2 paged"])
def test_calls_follow_the_documented_interface(name, block_size, modules, monkeypatch):
    for module, functions in modules.items():
        stand_in = ModuleType(module)
        stand_in.__dict__.update(functions)
        monkeypatch.setitem(sys.modules, module, stand_in)
    if "vllm" not in modules:
        monkeypatch.setitem(sys.modules, "vllm", None)  # as if not installed
    backend = resolve(name)(3, 64, torch.float32, block_size)
    for new, cached in BY_HAND:
        assert make_case(new, cached, 3, 64, torch.float32, block_size=block_size).error(backend) < 1e-5, (new, cached)

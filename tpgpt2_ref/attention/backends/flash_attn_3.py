"""FLASH_ATTN_3: FlashAttention-3 for Hopper, over pages of 16 (Shah et al. 2024, arXiv 2407.08608).

From `flash_attn_interface` (the folder hopper of FlashAttention's repository) or from vLLM's build of it. Both
have `get_scheduler_metadata`: how the tiles of this step's batch are dealt out to the GPU's processors, computed
once a step instead of once a layer, and in time to be part of a CUDA graph.
"""
from __future__ import annotations

import torch

from .base import AttentionBackend, import_package


class FlashAttention3(AttentionBackend):
    name = "FLASH_ATTN_3"
    prefill_graphs = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fa3 = self.load()
        self.vllm = self.fa3.__name__.startswith("vllm")
        self.fp8 = self.cache_dtype != "auto"
        self.kernel_dtype = torch.float8_e4m3fn if self.fp8 else self.dtype  # of q too: it must be the cache's

    @classmethod
    def load(cls):
        package = import_package("flash_attn_interface", "vllm.vllm_flash_attn._vllm_fa3_C")
        return package if package.__name__ == "flash_attn_interface" else import_package("vllm.vllm_flash_attn")

    def build(self, meta):
        if self.reads_new_tokens(meta):
            return None
        return self.fa3.get_scheduler_metadata(
            meta.num_seqs, meta.max_query_len, meta.max_seq_len, self.num_heads, self.num_heads, self.head_size,
            meta.seq_lens, self.kernel_dtype, cu_seqlens_q=meta.query_start_loc, page_size=self.block_size, causal=True)

    def forward(self, q, k, v, kv_cache, meta):
        if self.reads_new_tokens(meta):  # unpaged, the kernel can use Hopper's bulk copies
            start, n = meta.query_start_loc, meta.max_query_len
            more = {"fa_version": 3} if self.vllm else {}
            return self.fa3.flash_attn_varlen_func(q, k, v, max_seqlen_q=n, cu_seqlens_q=start, max_seqlen_k=n,
                                                   cu_seqlens_k=start, softmax_scale=self.scale, causal=True, **more)
        paged = self._paged_vllm if self.vllm else self._paged
        if self.fp8:  # what comes out is bfloat16
            return paged(q.to(self.kernel_dtype), *kv_cache.unbind(0), meta).to(self.dtype)
        return paged(q, *kv_cache.unbind(0), meta)

    def reads_new_tokens(self, meta) -> bool:
        return meta.no_context and not self.fp8

    def _paged_vllm(self, q, keys, values, meta):
        return self.fa3.flash_attn_varlen_func(
            q, keys, values, meta.max_query_len, meta.query_start_loc, meta.max_seq_len, seqused_k=meta.seq_lens,
            softmax_scale=self.scale, causal=True, block_table=meta.block_table, scheduler_metadata=meta.kernel,
            fa_version=3)

    def _paged(self, q, keys, values, meta):
        return self.fa3.flash_attn_with_kvcache(
            q, keys, values, cache_seqlens=meta.seq_lens, page_table=meta.block_table,
            cu_seqlens_q=meta.query_start_loc, max_seqlen_q=meta.max_query_len, softmax_scale=self.scale, causal=True,
            scheduler_metadata=meta.kernel)

"""FLASH_ATTN_4: FlashAttention-4, written in CuTe DSL and compiled at the first call. Not in the diagrams."""
from __future__ import annotations

from .base import AttentionBackend, import_package


class FlashAttention4(AttentionBackend):
    name = "FLASH_ATTN_4"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.package = self.load()

    @classmethod
    def load(cls):
        return import_package("flash_attn.cute")

    def forward(self, q, k, v, kv_cache, meta):
        start, n = meta.query_start_loc, meta.max_query_len
        if meta.no_context:
            keys, values, more = k, v, {"cu_seqlens_k": start, "max_seqlen_k": n}
        else:
            keys, values = kv_cache.unbind(0)  # (num_blocks, block_size, heads, head_size) each
            more = {"seqused_k": meta.seq_lens, "page_table": meta.block_table, "max_seqlen_k": meta.max_seq_len}
        out, _ = self.package.flash_attn_varlen_func(q, keys, values, cu_seqlens_q=start, max_seqlen_q=n,
                                                     softmax_scale=self.scale, causal=True, **more)
        return out

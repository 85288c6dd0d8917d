"""TRITON_ATTN: this package's own kernel, `triton_kernel.py`. Takes pages of any size, fp8 caches too."""
from __future__ import annotations

import torch

from .base import AttentionBackend, import_package


class TritonAttention(AttentionBackend):
    name = "TRITON_ATTN"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kernel = self.load()

    @classmethod
    def load(cls):
        import_package("triton")  # says what is missing
        from . import triton_kernel

        return triton_kernel

    def build(self, meta):
        """Room for the parts of a split decode step; nothing for a prefill."""
        if not meta.is_decode:
            return None
        device = meta.seq_lens.device
        sms = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        splits = self.kernel.decode_splits(meta.num_seqs * self.num_heads, meta.max_seq_len, self.head_size,
                                           sms)
        return self.kernel.decode_scratch(meta.num_seqs, self.num_heads, self.head_size, splits, device)

    def forward(self, q, k, v, kv_cache, meta):
        keys, values = kv_cache.unbind(0)  # (num_blocks, block_size, heads, head_size) each
        if meta.is_decode:
            return self.kernel.paged_decode(q, keys, values, meta.seq_lens, meta.block_table, self.scale, *meta.kernel)
        page = self.block_size
        if meta.no_context and self.cache_dtype == "auto":  # all keys are new: read them where they are
            keys, values, page = k, v, 0
        return self.kernel.paged_prefill(q, keys, values, meta.query_start_loc, meta.seq_lens, meta.block_table,
                                         meta.max_query_len, self.scale, page)

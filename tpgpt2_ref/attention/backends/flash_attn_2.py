"""FLASH_ATTN_2: FlashAttention-2 (Dao 2023, arXiv 2307.08691), from whichever build of it this machine has.

    vllm.vllm_flash_attn          reads pages of 16 itself
    flash_attn                    reads pages of 256 and its multiples; smaller ones are gathered
    torch.nn.attention.varlen     PyTorch's own, so that a plain install has it; gathers
"""
from __future__ import annotations

from .base import AttentionBackend, import_package
from .gather import gather, gathered_bytes, pack, whole_pages


class FlashAttention2(AttentionBackend):
    name = "FLASH_ATTN_2"
    prefill_graphs = True
    PACKAGES = ("vllm.vllm_flash_attn._vllm_fa2_C", "flash_attn", "torch.nn.attention.varlen")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.package = self.load()
        name = self.package.__name__
        self.varlen = {"vllm.vllm_flash_attn": self._vllm, "flash_attn": self._flash_attn,
                       "torch.nn.attention.varlen": self._torch}[name]
        self.gathers = name.startswith("torch") or name == "flash_attn" and self.block_size % 256 != 0
        self.with_kvcache = self.package.flash_attn_with_kvcache if name == "flash_attn" else None  # it splits the keys

    @classmethod
    def load(cls):
        package = import_package(*cls.PACKAGES)
        return import_package("vllm.vllm_flash_attn") if package.__name__.endswith("_vllm_fa2_C") else package

    def scratch(self, rows, longest):
        return gathered_bytes(self, rows * (longest + self.block_size)) if self.gathers else 0

    def build(self, meta):
        """Where to gather from; nothing for a first prefill, for pages read in place, and for pages taken whole."""
        return None if meta.no_context or not self.gathers or self._splits(meta) else pack(meta)

    def forward(self, q, k, v, kv_cache, meta):
        start, n = meta.query_start_loc, meta.max_query_len
        if meta.no_context:
            return self.varlen(q, k, v, start, start, n, n)
        if self._splits(meta):
            return self._decode(q, kv_cache, meta)
        if not self.gathers:
            return self.varlen(q, kv_cache[0], kv_cache[1], start, None, n, meta.max_seq_len, meta)
        keys, values = gather(kv_cache, meta.kernel)
        return self.varlen(q, keys, values, start, meta.kernel.start, n, meta.max_seq_len)

    def _splits(self, meta) -> bool:
        return meta.is_decode and self.with_kvcache is not None

    def _decode(self, q, kv_cache, meta):
        (keys, values), table = (whole_pages(kv_cache, meta), None) if self.gathers else (kv_cache, meta.block_table)
        return self.with_kvcache(q[:, None], keys, values, cache_seqlens=meta.seq_lens, block_table=table,
                                 softmax_scale=self.scale, causal=True)[:, 0]

    def _vllm(self, q, k, v, start_q, start_k, max_q, max_k, paged=None):
        lens, table = (paged.seq_lens, paged.block_table) if paged else (None, None)
        return self.package.flash_attn_varlen_func(q, k, v, max_q, start_q, max_k, start_k, lens, block_table=table,
                                                   softmax_scale=self.scale, causal=True, fa_version=2)

    def _flash_attn(self, q, k, v, start_q, start_k, max_q, max_k, paged=None):
        if paged:  # this package takes the lengths of paged sequences as their sums
            start_k = start_q.new_zeros(start_q.shape)
            start_k[1:] = paged.seq_lens.cumsum(0)
        return self.package.flash_attn_varlen_func(q, k, v, start_q, start_k, max_q, max_k, softmax_scale=self.scale,
                                                   causal=True, block_table=paged and paged.block_table)

    def _torch(self, q, k, v, start_q, start_k, max_q, max_k):
        return self.package.varlen_attn(q, k, v, start_q, start_k, max_q, max_k, scale=self.scale, window_size=(-1, 0))

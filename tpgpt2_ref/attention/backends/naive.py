"""NAIVE: attention as the textbook writes it, softmax(q k^T / sqrt(d)) v, one sequence at a time.

Runs anywhere torch runs, in any dtype, and is the reference that every other backend is held to.
"""
from __future__ import annotations

import torch

from .base import AttentionBackend


class NaiveBackend(AttentionBackend):
    name = "NAIVE"
    cuda_graphs = False

    def scratch(self, rows, longest):
        """One sequence, in float32: its scores, masked, and their softmax; q, k and v as they are and as einsum wants
        them."""
        return 4 * longest * (4 * self.num_heads * longest + 10 * self.num_heads * self.head_size)

    def forward(self, q, k, v, kv_cache, meta):
        out = torch.empty_like(q)
        starts, lens = meta.query_start_loc.tolist(), meta.seq_lens.tolist()
        for b, n in enumerate(lens):
            rows = slice(starts[b], starts[b + 1])
            pages = meta.block_table[b, : -(-n // meta.block_size)].long()
            keys, values = (kv_cache[i, pages].flatten(0, 1)[:n].to(q.dtype) for i in (0, 1))  # (n, heads, head_size)
            out[rows] = self.attend(q[rows], keys, values, self.scale)
        return out

    @staticmethod
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """q (t, heads, d), the last t of k and v's n tokens (n, heads, d) -> (t, heads, d)."""
        t, n, dtype = q.shape[0], k.shape[0], q.dtype
        q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))  # halves would round the scores
        scores = torch.einsum("thd,nhd->htn", q, k) * scale
        future = torch.ones(t, n, dtype=torch.bool, device=q.device).triu(n - t + 1)
        return torch.einsum("htn,nhd->thd", scores.masked_fill(future, float("-inf")).softmax(-1), v).to(dtype)

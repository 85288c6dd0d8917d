"""SDPA: PyTorch's scaled_dot_product_attention, which picks a fused kernel for the machine it is on."""
from __future__ import annotations

import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from .naive import NaiveBackend


class SDPA(NaiveBackend):
    """One sequence at a time, as NAIVE; only the arithmetic is another."""

    name = "SDPA"

    @staticmethod
    def attend(q, k, v, scale):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, tokens, d)
        mask = causal_lower_right(q.shape[2], k.shape[2]) if q.shape[2] > 1 else None
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)[0].transpose(0, 1)

"""Diagram 1's `Attention.__init__`: the layer asks for a backend once, then only calls it."""
from __future__ import annotations

import torch
from torch import nn

from .backends.base import AttentionBackend
from .kv_cache import write_kv_cache
from .metadata import AttentionMetadata


class Attention(nn.Module):
    """This rank's heads through the chosen kernel. One `impl` serves every layer: it holds no tensor.

    impl  the backend that `selector.get_attn_backend` chose
    """

    def __init__(self, impl: AttentionBackend):
        super().__init__()
        self.impl = impl

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor,
                meta: AttentionMetadata) -> torch.Tensor:
        """q, k, v (T, heads * head_size) -> (T, heads * head_size); k and v go into the cache on the way."""
        q, k, v = (x.unflatten(-1, (-1, self.impl.head_size)) for x in (q, k, v))  # (T, heads, head_size)
        write_kv_cache(k, v, kv_cache, meta.slot_mapping)
        return self.impl.forward(q, k, v, kv_cache, meta).flatten(1)

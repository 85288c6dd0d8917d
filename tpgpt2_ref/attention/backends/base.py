"""The interface behind which every kernel runs: varlen queries over a paged KV cache."""
from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from ..metadata import AttentionMetadata


class AttentionBackend(ABC):
    """One attention kernel, bound to a layer shape. Constructing it imports the kernel's package, and no other.

    num_heads, head_size   of this rank
    dtype                  of q, k, v
    block_size             tokens a page
    cache_dtype            "auto" (dtype) or "fp8_e4m3"
    """

    name: str

    def __init__(self, num_heads: int, head_size: int, dtype: torch.dtype, block_size: int = 16,
                 cache_dtype: str = "auto"):
        self.num_heads, self.head_size, self.dtype = num_heads, head_size, dtype
        self.block_size, self.cache_dtype = block_size, cache_dtype
        self.scale = head_size**-0.5

    def build(self, meta: AttentionMetadata):
        """Once a step, before the layers: whatever the kernel wants precomputed. Becomes `meta.kernel`."""
        return None

    @abstractmethod
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor,
                meta: AttentionMetadata) -> torch.Tensor:
        """Causal attention of T new tokens over their sequences' cached and new tokens.

        q, k, v    (T, heads, head_size), the new tokens; k and v are already in the cache
        kv_cache   (2, num_blocks, block_size, heads, head_size)
        returns    (T, heads, head_size)
        """

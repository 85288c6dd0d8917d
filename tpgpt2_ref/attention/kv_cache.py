"""The paged KV cache: pages of 16 tokens, handed out by a block allocator, as in PagedAttention.

A layer's cache is one tensor (2, num_blocks, block_size, heads, head_size): keys first, then values, this
rank's heads only. Source: Kwon et al. 2023, arXiv 2309.06180.
"""
from __future__ import annotations

import torch

from ..errors import UserError


def allocate_kv_cache(layers: int, num_blocks: int, block_size: int, heads: int, head_size: int,
                      dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """One (2, num_blocks, block_size, heads, head_size) tensor a layer. Zeroed: a kernel may read past a
    sequence's end inside a page, and 0 * garbage must not be NaN."""
    return [torch.zeros(2, num_blocks, block_size, heads, head_size, dtype=dtype, device=device)
            for _ in range(layers)]


def write_kv_cache(k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """Put k and v, (T, heads, head_size), into their slots (T,) of one layer's cache."""
    flat = kv_cache.flatten(1, 2)  # (2, num_blocks * block_size, heads, head_size)
    if flat.dtype.itemsize == 1:  # index_put has no fp8; the bytes are what moves
        flat = flat.view(torch.uint8)
        k, v = (x.to(kv_cache.dtype).view(torch.uint8) for x in (k, v))
    flat[0].index_copy_(0, slot_mapping, k)
    flat[1].index_copy_(0, slot_mapping, v)


class BlockAllocator:
    """Hands out pages. Page 0 is never handed out: rows of a batch that hold no sequence write there."""

    def __init__(self, num_blocks: int, block_size: int = 16):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.free = list(range(num_blocks - 1, 0, -1))

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def allocate(self, tokens: int) -> list[int]:
        """Pages for that many tokens. Raises UserError, and takes nothing, if there are too few."""
        n = self.blocks_for(tokens)
        if n > len(self.free):
            raise UserError(f"the KV cache is full: {tokens} tokens need {n} pages of {self.block_size}, "
                            f"{len(self.free)} of {self.num_blocks - 1} are free")
        return [self.free.pop() for _ in range(n)]

    def release(self, blocks: list[int]) -> None:
        self.free.extend(reversed(blocks))

"""For kernels that can't follow a block table: copy the keys and values out of their pages, sequence by sequence.

Costs a read and a write of all the keys and values attended to, which is why the other kernels are faster in decode.
"""
from __future__ import annotations

from typing import NamedTuple

import torch

from ..metadata import AttentionMetadata


class Packed(NamedTuple):
    """Where the keys of a batch lie. Sequence b owns rows start[b]:start[b+1] of what `gather` returns."""

    slots: torch.Tensor  # (n,) int64, slot of each row in the cache
    start: torch.Tensor  # (B+1,) int32
    max_seq_len: int


def pack(meta: AttentionMetadata) -> Packed:
    """Once a step. In decode n is B * max_seq_len, an upper bound, so that it works in a CUDA graph."""
    start = torch.zeros_like(meta.query_start_loc)
    start[1:] = meta.seq_lens.cumsum(0)
    n = meta.num_seqs * meta.max_seq_len if meta.is_decode else int(start[-1])
    row = torch.arange(n, device=start.device)
    sequence = torch.searchsorted(start, row, right=True).sub_(1).clamp_(max=meta.num_seqs - 1)
    position = (row - start[sequence]).clamp_(max=meta.max_seq_len - 1)  # rows past the end read something, unused
    page = meta.block_table[sequence, position // meta.block_size].long()
    return Packed(page * meta.block_size + position % meta.block_size, start, meta.max_seq_len)


def gather(kv_cache: torch.Tensor, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, num_blocks, block_size, heads, head_size) -> keys, values: (n, heads, head_size) each."""
    keys, values = (x.flatten(0, 1).index_select(0, packed.slots) for x in kv_cache)
    return keys, values


def gathered_bytes(backend, tokens: int) -> int:
    """Bytes of so many gathered keys and values, and of `Packed` while it is made."""
    return tokens * (2 * backend.num_heads * backend.head_size * backend.kv_dtype.itemsize + 64)


def whole_pages(kv_cache: torch.Tensor, meta: AttentionMetadata) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, num_blocks, block_size, heads, head_size) -> keys, values: (B, pages * block_size, heads, head_size) each,
    every sequence its own rows, as many as the longest needs. For kernels that are told the lengths."""
    table = meta.block_table[:, : -(-meta.max_seq_len // meta.block_size)]
    keys, values = (x[table].flatten(1, 2) for x in kv_cache)
    return keys, values

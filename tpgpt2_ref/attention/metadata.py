"""What a batch of unequal sequences looks like to an attention kernel ("varlen", as FlashAttention names it)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class AttentionMetadata:
    """One step's batch of B sequences with T new tokens, flat: sequence b owns rows start[b]:start[b+1] of q, k, v.

    All tensors live on the model's device. In a decode step T = B and every query is one token long.
    The two maxima are Python integers, because kernels size their grids by them; in a CUDA graph they are
    upper bounds.
    """

    query_start_loc: torch.Tensor  # (B+1,) int32, where each sequence's new tokens start
    seq_lens: torch.Tensor  # (B,) int32, cached and new tokens of each sequence
    block_table: torch.Tensor  # (B, pages) int32, the pages of each sequence, in order
    slot_mapping: torch.Tensor  # (T,) int64, page * block_size + offset of each new token
    max_query_len: int
    max_seq_len: int
    no_context: bool  # True: every sequence is all new (seq_lens == query lengths), a first prefill
    block_size: int = 16
    kernel: Any = None  # what the chosen backend's `build` made of it, once a step

    @property
    def is_decode(self) -> bool:
        return self.max_query_len == 1

    @property
    def num_seqs(self) -> int:
        return self.seq_lens.shape[0]


def slots(block_table: torch.Tensor, positions: torch.Tensor, sequence: torch.Tensor, block_size: int) -> torch.Tensor:
    """Where tokens go in the cache: page * block_size + offset.

    block_table (B, pages), positions (T,) of each token in its sequence, sequence (T,) whose row it is -> (T,) int64
    """
    page = block_table[sequence, positions // block_size].long()
    return page * block_size + positions % block_size


def prefill_metadata(lengths: list[int], block_table: torch.Tensor, block_size: int = 16):
    """(metadata, positions (T,) int64) for prompts of the given lengths that start at position 0."""
    device = block_table.device
    n = torch.tensor(lengths, device=device)
    start = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=device)
    start[1:] = n.cumsum(0)
    sequence = torch.arange(len(lengths), device=device).repeat_interleave(n)
    positions = torch.arange(int(sum(lengths)), device=device) - start[sequence].long()
    meta = AttentionMetadata(start, n.int(), block_table, slots(block_table, positions, sequence, block_size),
                             max(lengths), max(lengths), True, block_size)
    return meta, positions


def decode_metadata(positions: torch.Tensor, block_table: torch.Tensor, max_seq_len: int, block_size: int = 16):
    """Metadata for one new token a sequence, at positions (B,) int64. Device operations only."""
    sequence = torch.arange(len(positions), device=positions.device)
    return AttentionMetadata(torch.arange(len(positions) + 1, dtype=torch.int32, device=positions.device),
                             (positions + 1).int(), block_table,
                             slots(block_table, positions, sequence, block_size), 1, max_seq_len, False, block_size)

"""What a decode step reads and writes beside weights and cache: B rows, one sequence each, all on the device."""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..attention.metadata import slots


class Scaled(NamedTuple):
    """A residual with what a product behind its LayerNorm needs, so that no kernel of its own must normalize it."""

    x: torch.Tensor  # (B, D); the sums over a row of x and of x^2 are in the state's `moments`
    scaled: torch.Tensor  # (B, D) x times the norm's weight


@dataclass
class DecodeState:
    """A step reads the newest token of each row, and leaves the next one in its place.

    A row without a sequence has live 0 and position 0; its pages are all page 0, which no sequence owns.
    """

    ids: torch.Tensor  # (B,) int64, the newest token
    positions: torch.Tensor  # (B,) int64, where it stands in its sequence: as many tokens are in the cache
    live: torch.Tensor  # (B,) int64, 1 or 0: by how much a step moves the position on
    block_table: torch.Tensor  # (B, pages) int32
    sampling: torch.Tensor  # (2 + B,) int32: temperature's bits (0: greedy), seed, each row's sequence number
    tokens: torch.Tensor  # (B, n_positions + 1) int32 in the host's pinned memory, by position; -1: not there yet
    arrived: torch.Tensor  # int32 zeros, where programs that share one result count themselves
    moments: torch.Tensor  # (2, 2, B) int64: a row's sum, and sum of squares, for the LayerNorm behind; two in turn
    block_size: int = 16
    turn: int = 0  # whose turn it is of the two

    @classmethod
    def empty(cls, batch: int, heads: int, length: int, device: torch.device, block_size: int = 16) -> DecodeState:
        def zeros(*shape, dtype=torch.int64):
            return torch.zeros(*shape, dtype=dtype, device=device)

        tokens = torch.full((batch, length + 1), -1, dtype=torch.int32, pin_memory=device.type == "cuda")
        return cls(zeros(batch), zeros(batch), zeros(batch), zeros(batch, -(-length // block_size), dtype=torch.int32),
                   zeros(2 + batch, dtype=torch.int32), tokens, zeros(max(4096, batch * heads), dtype=torch.int32),
                   zeros(2, 2, batch), block_size)

    @property
    def batch(self) -> int:
        return self.ids.shape[0]

    def slots(self) -> torch.Tensor:
        """(B,) int64: where the newest token's key and value go."""
        rows = torch.arange(self.batch, device=self.positions.device)
        return slots(self.block_table, self.positions, rows, self.block_size)

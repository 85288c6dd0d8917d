"""What a decode step reads and writes beside weights and cache: B rows, one sequence each, all on the device."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..attention.metadata import slots


class Residual(NamedTuple):
    """The stream between two layers of a decode step, and how far the LayerNorm behind it has come.

    What reads it applies `norm` to `x`, unless an earlier kernel did (`normed`), or left the half of it that a
    product can finish (`scaled`, with the row sums in the state).
    """

    x: torch.Tensor  # (B, D)
    norm: torch.nn.LayerNorm  # what the next layer reads is norm(x)
    normed: torch.Tensor | None = None  # (B, D) norm(x)
    scaled: torch.Tensor | None = None  # (B, D) x, shifted by one number a row, times the norm's weight

    def read(self) -> torch.Tensor:
        """norm(x), (B, D)."""
        return self.norm(self.x) if self.normed is None else self.normed


@dataclass
class DecodeState:
    """A step reads the newest token of each row, and leaves the next one in its place.

    A row without a sequence has live 0 and position 0; its pages are all page 0, which no sequence owns.
    """

    ids: torch.Tensor  # (B,) int64, the newest token
    positions: torch.Tensor  # (B,) int64, where it stands in its sequence: as many tokens are in the cache
    live: torch.Tensor  # (B,) int64, 1 or 0: by how much a step moves the position on
    seeds: torch.Tensor  # (B,) int64, of each sequence's noise
    block_table: torch.Tensor  # (B, pages) int32
    sampling: torch.Tensor  # (3,) float32: temperature (0: greedy), top_k (0: all), top_p
    tokens: torch.Tensor  # (B, n_positions + 1) int32 in the host's pinned memory, by position; -1: not there yet
    arrived: torch.Tensor  # int32 zeros, where programs that share one result count themselves
    row_sums: torch.Tensor  # (2, 3, B) int64: what a LayerNorm behind needs, see `products.wide`; two in turn
    block_size: int = 16
    turn: int = 0  # whose turn it is of the two
    folded: dict = field(default_factory=dict)  # LayerNorms folded into the weights behind them, see `products.wide`

    @classmethod
    def empty(cls, batch: int, heads: int, length: int, device: torch.device, block_size: int = 16) -> DecodeState:
        def zeros(*shape, dtype=torch.int64):
            return torch.zeros(*shape, dtype=dtype, device=device)

        tokens = torch.full((batch, length + 1), -1, dtype=torch.int32, pin_memory=device.type == "cuda")
        return cls(zeros(batch), zeros(batch), zeros(batch), zeros(batch),
                   zeros(batch, -(-length // block_size), dtype=torch.int32), zeros(3, dtype=torch.float32), tokens,
                   zeros(max(4096, batch * heads), dtype=torch.int32), zeros(2, 3, batch), block_size)

    @property
    def batch(self) -> int:
        return self.ids.shape[0]

    def slots(self) -> torch.Tensor:
        """(B,) int64: where the newest token's key and value go."""
        rows = torch.arange(self.batch, device=self.positions.device)
        return slots(self.block_table, self.positions, rows, self.block_size)

"""The vocabulary, cut by rows: each rank looks up, and scores, its own tokens.

    wte      (V, D) -> rank r holds rows [r*V/n, (r+1)*V/n); a token's row lives on one rank, the others add 0
    logits   (T, D) @ (D, V/n) -> (T, V/n), all-gathered to (T, V)

GPT-2's 50,257 tokens are odd: the rows are padded with zeros to a multiple of 64 a rank, and the padding is
cut off after the gather.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .collectives import all_gather, all_reduce
from .linear import parameter, shard

VOCAB_MULTIPLE = 64  # rows a rank: keeps the head's matrix product on the fast path
ROWS = 8192  # rows loaded at once


class VocabParallelEmbedding(nn.Module):
    """ids (T,) -> (T, D): one lookup in this rank's rows, then an all-reduce of T * D elements.

    weight  (local, D): rows to share with another layer; None: rows of its own
    """

    def __init__(self, vocab_size: int, hidden_size: int, world, weight: nn.Parameter | None = None):
        super().__init__()
        self.world, self.vocab_size, self.name = world, vocab_size, ""
        self.local, self.start, self.stop = shard(vocab_size, world, VOCAB_MULTIPLE)
        self.weight = parameter(self.local, hidden_size) if weight is None else weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return all_reduce(self.partial(ids), self.world, self.name)

    def partial(self, ids: torch.Tensor) -> torch.Tensor:
        """The tokens that this rank has, and zeros for the others: what the ranks then sum. (T,) -> (T, D)."""
        if self.world.size == 1:
            return F.embedding(ids, self.weight)
        row = ids - self.start
        foreign = (row < 0) | (row >= self.local)
        return F.embedding(row.masked_fill(foreign, 0), self.weight).masked_fill(foreign[:, None], 0)

    def load(self, weight):
        self.weight.zero_()
        for first in range(self.start, self.stop, ROWS):  # the largest tensor by far: whole, it would stand there twice
            last = min(first + ROWS, self.stop)
            self.weight[first - self.start : last - self.start] = weight[first:last]


class ParallelLMHead(VocabParallelEmbedding):
    """hidden (B, D) -> logits (B, V) on every rank, with the embedding's own rows where they are tied, as in GPT-2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = F.linear(x, self.weight)  # (B, D) -> (B, V/n)
        return all_gather(logits, self.world, self.name)[..., : self.vocab_size]

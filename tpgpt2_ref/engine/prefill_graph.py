"""Prefills as CUDA graphs: one launch instead of a hundred and fifty, which the host needs longer for than the GPU.

A graph serves all batches of a bucket: prompts up to a number, tokens up to a number. What is over is one more
sequence, of padding tokens on page 0, so that the graph computes on nothing but finite numbers. A bucket's first
batch is left to gpt2.py, its second is captured: one prompt on the command line does not pay for a capture.
"""
from __future__ import annotations

from collections import Counter, OrderedDict
from types import ModuleType

import numpy as np
import torch

from ..attention.metadata import AttentionMetadata
from .batch import block_table, send
from .graph import CapturedStep
from .prefill_step import prefill_step
from .scheduler import Sequence

BUCKETS = 16  # graphs that are kept, of those used last: each is some megabytes, besides the memory that they share


class GraphPrefill:
    """Runs `prefill_step` for prompts that have pages. The world closes it before itself.

    kernels  `kernels.prefill`, or its twins in `kernels.plain`
    capture  how a step is recorded: `graph.PlainStep` does without a GPU
    """

    def __init__(self, model, kv_caches: list[torch.Tensor], kernels: ModuleType, capture=CapturedStep):
        self.model, self.kv_caches, self.kernels, self.capture = model, kv_caches, kernels, capture
        self.buckets: OrderedDict[tuple, Bucket] = OrderedDict()
        self.seen: Counter = Counter()
        self.pool = None  # the graphs' memory, shared: they never run at once
        model.world.before_close.add(self)

    def logits(self, sequences: list[Sequence]) -> torch.Tensor | None:
        """Logits of each prompt's last position, (B, V), until the next call; None for a bucket's first batch."""
        lengths = [len(s.prompt) for s in sequences]
        key = bucket_of(lengths, self.model.config.n_positions)
        self.seen[key] += 1
        if self.seen[key] == 1:
            return None
        bucket = self.buckets.pop(key, None) or Bucket(self.model, *key)
        bucket.fill(sequences, lengths)
        if bucket.step is None:
            bucket.step = self.capture(lambda: bucket.run(self.kv_caches, self.kernels), self.pool)
            self.pool = bucket.step.pool
        self.buckets[key] = bucket  # as the one used last
        if len(self.buckets) > BUCKETS:
            self.buckets.popitem(last=False)
        bucket.step.replay()
        return bucket.logits[: len(sequences)]

    def close(self) -> None:
        self.buckets.clear()


def bucket_of(lengths: list[int], n_positions: int) -> tuple[int, int, int]:
    """(sequences, tokens, longest) that a graph for these prompts is made for: at most an eighth more tokens, and no
    more padding than one sequence may be long."""
    tokens = sum(lengths) + 1
    grain = max(64, min(512, 1 << (tokens // 8 + 1).bit_length() - 1))
    grain = min(grain, n_positions)
    total = -(-tokens // grain) * grain
    longest = max(*lengths, total - sum(lengths))
    return 1 << len(lengths).bit_length(), total, min(n_positions, 1 << (longest - 1).bit_length())


class Bucket:
    """The tensors of one bucket, and its graph once it is captured."""

    def __init__(self, model, sequences: int, tokens: int, longest: int):
        self.model, self.step, self.logits = model, None, None
        self.sequences, self.tokens, self.longest = sequences, tokens, longest
        self.pages = -(-model.config.n_positions // model.impl.block_size)
        # ids, positions, slots; starts; lengths, last rows; pages
        numbers = 3 * tokens + sequences + 1 + 2 * sequences + sequences * self.pages
        self.numbers = torch.zeros(numbers, dtype=torch.int64, device=model.world.device)
        self.parts: list[torch.Tensor] = []

    def fill(self, sequences: list[Sequence], lengths: list[int]) -> None:
        """Ids, positions, slots, starts, lengths, last rows and pages, counted on the host and sent in one piece."""
        size, padding = self.model.impl.block_size, self.tokens - sum(lengths)
        starts = np.full(self.sequences + 1, self.tokens)  # behind the prompts, one sequence of padding, and empty ones
        starts[: len(lengths) + 1] = np.cumsum([0, *lengths])
        table = block_table(sequences, self.pages, self.sequences)
        count = np.arange(max(self.longest, size))
        slots = (table[: len(lengths), :, None] * size + count[:size]).reshape(len(lengths), -1)  # (B, pages * size)
        ids = np.concatenate([*(s.prompt for s in sequences), np.zeros(padding, dtype=np.int64)])
        positions = np.concatenate([count[:n] for n in (*lengths, padding)])
        slots = np.concatenate([*(row[:n] for row, n in zip(slots, lengths)), count[:padding] % size])
        self.parts = send([ids, positions, slots, starts, np.diff(starts), starts[1:] - 1, table],
                          self.model.world.device, into=self.numbers)

    def run(self, kv_caches: list[torch.Tensor], kernels: ModuleType) -> None:
        ids, positions, slots, starts, lens, last, table = self.parts
        meta = AttentionMetadata(starts.int(), lens.int(), table.view(self.sequences, self.pages).int(), slots,
                                 self.longest, self.longest, True, self.model.impl.block_size)
        self.logits = prefill_step(self.model, ids, positions, kv_caches, meta, last, kernels)

"""Prefills as CUDA graphs: one launch instead of a hundred and fifty, which the host needs longer for than the GPU.

A graph serves all batches of a bucket: prompts up to a number, tokens up to a number. What is over is one more
sequence, of padding tokens on page 0, so that the graph computes on nothing but finite numbers. A bucket's first
batch is left to gpt2.py, its second is captured: one prompt on the command line does not pay for a capture.
"""
from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import torch

from ..attention.metadata import AttentionMetadata
from .graph import CapturedStep, CaptureError
from .prefill_step import prefill_step

GRAPHED = ("FLASH_ATTN_3", "FLASH_ATTN_2")  # backends that ask the device for nothing while they are enqueued


class GraphPrefill:
    """Runs `prefill_step` for prompts that have pages. The world closes it before itself."""

    def __init__(self, model, kv_caches: list[torch.Tensor], block_size: int):
        self.model, self.kv_caches, self.block_size = model, kv_caches, block_size
        self.buckets: dict[tuple, Bucket] = {}
        self.seen: Counter = Counter()
        self.graphs = model.impl.name in GRAPHED
        model.world.before_close.add(self)

    def logits(self, sequences: list) -> torch.Tensor | None:
        """Logits of each prompt's last position, (B, V); None for a bucket's first batch, or where graphs can't be."""
        lengths = [len(s.prompt) for s in sequences]
        key = bucket_of(lengths, self.model.config.n_positions)
        self.seen[key] += 1
        if self.seen[key] == 1 or not self.graphs:
            return None
        if key not in self.buckets:
            self.buckets[key] = Bucket(self.model, self.kv_caches, self.block_size, *key)
        bucket = self.buckets[key]
        bucket.fill(sequences, lengths)
        try:
            bucket.step = bucket.step or CapturedStep(bucket.run)
        except CaptureError as e:
            self.graphs = False
            print(f"prefilling without CUDA graphs: {e}", file=sys.stderr)
            return None
        bucket.step.replay()
        return bucket.logits[: len(sequences)]

    def close(self) -> None:
        self.buckets.clear()


def bucket_of(lengths: list[int], n_positions: int) -> tuple[int, int, int]:
    """(sequences, tokens, longest) that a graph for these prompts is made for: at most an eighth more tokens."""
    tokens = sum(lengths) + 1
    grain = max(64, min(512, 1 << (tokens // 8 + 1).bit_length() - 1))
    total = -(-tokens // grain) * grain
    longest = max(*lengths, total - sum(lengths))
    return 1 << len(lengths).bit_length(), total, max(min(n_positions, 1 << (longest - 1).bit_length()), longest)


class Bucket:
    """The tensors of one bucket, and its graph once it is captured."""

    def __init__(self, model, kv_caches, block_size, sequences: int, tokens: int, longest: int):
        self.model, self.kv_caches, self.step, self.logits = model, kv_caches, None, None
        self.sequences, self.tokens, self.longest, self.block_size = sequences, tokens, longest, block_size
        self.pages = -(-model.config.n_positions // block_size)
        sizes = [tokens, tokens, tokens, sequences + 1, sequences, sequences, sequences * self.pages]
        device = model.world.device
        self.host = torch.zeros(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
        self.device = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self.sent = torch.cuda.Event() if device.type == "cuda" else None
        self.on_host, self.on_device = np.split(self.host.numpy(), np.cumsum(sizes)[:-1]), self.device.split(sizes)
        self.count = np.arange(max(longest, block_size))

    def fill(self, sequences: list, lengths: list[int]) -> None:
        """Ids, positions, slots, starts, lengths, last rows and pages, counted on the host and sent in one piece."""
        if self.sent is not None:
            self.sent.synchronize()  # the batch before may still be on its way
        ids, positions, slots, starts, lens, last, table = self.on_host
        table, size = table.reshape(self.sequences, self.pages), self.block_size
        self.host.zero_()
        starts[:] = self.tokens  # behind the prompts, one sequence of padding, and then empty ones
        starts[: len(lengths) + 1] = np.cumsum([0, *lengths])
        lens[:] = np.diff(starts)
        last[:] = starts[1:] - 1
        for row, s in enumerate(sequences):
            table[row, : len(s.blocks)] = s.blocks
        places = (table[: len(lengths), :, None] * size + self.count[:size]).reshape(len(lengths), -1)
        begin = 0
        for row, (s, n) in enumerate(zip(sequences, lengths)):
            end = begin + n
            ids[begin:end], positions[begin:end], slots[begin:end] = s.prompt, self.count[:n], places[row, :n]
            begin = end
        padding = self.tokens - sum(lengths)
        positions[-padding:], slots[-padding:] = self.count[:padding], self.count[:padding] % size
        self.device.copy_(self.host, non_blocking=True)
        if self.sent is not None:
            self.sent.record()

    def run(self) -> None:
        ids, positions, slots, starts, lens, last, table = self.on_device
        meta = AttentionMetadata(starts.int(), lens.int(), table.view(self.sequences, self.pages).int(), slots,
                                 self.longest, self.longest, True, self.block_size)
        self.logits = prefill_step(self.model, ids, positions, self.kv_caches, meta, last)

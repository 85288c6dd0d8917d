"""Prefills as CUDA graphs: one launch instead of a hundred and fifty, which the host needs longer for than the GPU.

A graph serves all batches of a bucket: prompts up to a number, tokens up to a number. What is over is one more
sequence, of padding tokens on page 0, so that the graph computes on nothing but finite numbers. A bucket's first
batch is left to gpt2.py, its second is captured: one prompt on the command line does not pay for a capture. Graphs keep
the memory of their tensors; a batch that there is no room for takes the same steps without one.
Where sums over the ranks are worth hiding, a batch is two parts, with a bucket's numbers each (`halves.py`).
"""
from __future__ import annotations

from collections import Counter, OrderedDict
from math import inf
from types import ModuleType

import numpy as np
import torch

from ..attention.metadata import AttentionMetadata
from ..parallel.all_reduce import all_reduce_beside
from .batch import block_table, send
from .graph import CapturedStep, PlainStep
from .halves import Lanes, Layers, cut, in_turn, whole, why_whole
from .memory import needs_of
from .prefill_step import prefill_layers
from .scheduler import Sequence

BUCKETS = 16  # graphs that are kept, of those used last: each is some megabytes, besides the memory that they share


class GraphPrefill:
    """Runs `prefill_layers` for prompts that have pages. The world closes it before itself.

    kernels  `kernels.prefill`, or its twins in `kernels.plain`
    capture  how a step is recorded: `graph.PlainStep` does without a GPU
    halves   whether a batch runs in two halves; None: where that is faster
    room     bytes that the graphs may hold: `memory.py`
    """

    def __init__(self, model, kv_caches: list[torch.Tensor], kernels: ModuleType, capture=CapturedStep,
                 halves: bool | None = None, room: float = inf):
        self.model, self.kv_caches, self.kernels, self.capture = model, kv_caches, kernels, capture
        self.halves, self.lanes = halves, None
        self.buckets: OrderedDict[tuple, Bucket] = OrderedDict()
        self.steps: dict[tuple, CapturedStep] = {}  # of those of them that are captured
        self.seen: Counter = Counter()
        self.pool = None  # the graphs' memory, shared: they never run at once
        self.needs, self.room, self.held = needs_of(model), room, 0
        model.world.before_close.add(self)

    def logits(self, sequences: list[Sequence]) -> torch.Tensor | None:
        """Logits of each prompt's last position, (B, V), until the next call; None for a bucket's first batch."""
        parts = self.parts(sequences)
        self.seen[key := self.key(parts)] += 1
        if self.seen[key] == 1:
            return None
        bucket = self.filled(parts)
        (self.steps.get(key) or self.recorded(key, bucket)).replay()
        return bucket.of_prompts(parts)

    def recorded(self, key: tuple, bucket: Bucket):
        """The bucket's step as a graph. Without one, and not kept, where it alone is more than all graphs may hold.

        A pool keeps what any of its graphs needed, and gives it back with the last of them: where it would grow too
        large, all graphs go, and a new pool begins.
        """
        need = sum(self.needs.prefill(tokens, rows) for rows, tokens, _ in key)
        if need > self.room:
            del self.buckets[key]
            return PlainStep(bucket.run)
        if self.held + need > self.room:
            self.buckets, self.steps, self.pool, self.held = OrderedDict({key: bucket}), {}, None, 0
        self.steps[key] = step = self.capture(bucket.run, self.pool)
        self.pool, self.held = step.pool, self.held + need
        return step

    def parts(self, sequences: list[Sequence]) -> list[list[Sequence]]:
        """The batch in one piece or in two."""
        lengths = [len(s.prompt) for s in sequences]
        two = not why_whole(lengths, self.model) if self.halves is None else self.halves
        n = cut(lengths)
        return [sequences[:n], sequences[n:]] if two and n else [sequences]

    def key(self, parts: list[list[Sequence]]) -> tuple:
        return tuple(bucket_of([len(s.prompt) for s in part], self.model.config.n_positions) for part in parts)

    def filled(self, parts: list[list[Sequence]]) -> Bucket:
        """The bucket of these prompts, which then is the one used last, with them in it."""
        key = self.key(parts)
        if len(key) > 1 and self.lanes is None:
            self.lanes = Lanes(self.model.world, all_reduce_beside(self.model.world))
        bucket = self.buckets.pop(key, None) or Bucket(self.model, key, self.kv_caches, self.kernels, self.lanes)
        bucket.fill(parts)
        self.buckets[key] = bucket
        if len(self.buckets) > BUCKETS:
            self.steps.pop(self.buckets.popitem(last=False)[0], None)
        return bucket

    def close(self) -> None:
        self.buckets.clear()
        self.steps.clear()


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
    """Batches of one or two parts, and the step that prefills them."""

    def __init__(self, model, key: tuple, kv_caches: list[torch.Tensor], kernels: ModuleType, lanes: Lanes | None):
        self.model, self.kv_caches, self.kernels, self.lanes = model, kv_caches, kernels, lanes
        self.parts = [Part(model, *size) for size in key]
        self.logits = None

    def fill(self, parts: list[list[Sequence]]) -> None:
        for part, sequences in zip(self.parts, parts):
            part.fill(sequences)

    def run(self) -> None:
        world = self.model.world
        layers = [part.layers(self.kv_caches, self.kernels) for part in self.parts]
        last = whole(layers[0], world) if len(layers) == 1 else torch.cat(in_turn(layers, self.lanes))  # (B, D)
        self.logits = self.model.logits(last)  # -> (B, V)

    def of_prompts(self, parts: list[list[Sequence]]) -> torch.Tensor:
        """The logits without those of padding: (B, V)."""
        found = self.logits.split([part.sequences for part in self.parts])
        real = [logits[: len(sequences)] for logits, sequences in zip(found, parts)]
        return real[0] if len(real) == 1 else torch.cat(real)


class Part:
    """The tensors that a step reads of a batch, or of half of it: up to so many sequences and tokens."""

    def __init__(self, model, sequences: int, tokens: int, longest: int):
        self.model, self.sequences, self.tokens, self.longest = model, sequences, tokens, longest
        self.pages = -(-model.config.n_positions // model.impl.block_size)
        # ids, positions, slots; starts; lengths, last rows; pages
        numbers = 3 * tokens + sequences + 1 + 2 * sequences + sequences * self.pages
        self.numbers = torch.zeros(numbers, dtype=torch.int64, device=model.world.device)
        self.sent: list[torch.Tensor] = []

    def fill(self, sequences: list[Sequence]) -> None:
        """Ids, positions, slots, starts, lengths, last rows and pages, counted on the host and sent in one piece."""
        lengths = [len(s.prompt) for s in sequences]
        size, padding = self.model.impl.block_size, self.tokens - sum(lengths)
        starts = np.full(self.sequences + 1, self.tokens)  # behind the prompts, one sequence of padding, and empty ones
        starts[: len(lengths) + 1] = np.cumsum([0, *lengths])
        table = block_table(sequences, self.pages, self.sequences)
        count = np.arange(max(self.longest, size))
        slots = (table[: len(lengths), :, None] * size + count[:size]).reshape(len(lengths), -1)  # (B, pages * size)
        ids = np.concatenate([*(s.prompt for s in sequences), np.zeros(padding, dtype=np.int64)])
        positions = np.concatenate([count[:n] for n in (*lengths, padding)])
        slots = np.concatenate([*(row[:n] for row, n in zip(slots, lengths)), count[:padding] % size])
        self.sent = send([ids, positions, slots, starts, np.diff(starts), starts[1:] - 1, table],
                         self.model.world.device, into=self.numbers)

    def layers(self, kv_caches: list[torch.Tensor], kernels: ModuleType) -> Layers:
        """`prefill_layers` of this part. Whatever it reads is made at its first step, on the stream that runs it."""
        ids, positions, slots, starts, lens, last, table = self.sent
        meta = AttentionMetadata(starts.int(), lens.int(), table.view(self.sequences, self.pages).int(), slots,
                                 self.longest, self.longest, True, self.model.impl.block_size)
        return (yield from prefill_layers(self.model, ids, positions, kv_caches, meta, last, kernels))

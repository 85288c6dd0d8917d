"""Who runs next: sequences wait until the cache has pages for all they may need, so that none is thrown out half-way.

vLLM admits a sequence earlier and preempts one where pages run out (Kwon et al. 2023, section 4.5); here it waits.
"""
from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field

from ..attention.kv_cache import BlockAllocator


@dataclass(eq=False)
class Sequence:
    """One prompt and what came of it."""

    prompt: array  # of int64, which a prefill can copy as it is
    limit: int  # new tokens at most
    seed: int = 0  # of its noise, an int64
    blocks: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens so far."""
        return len(self.prompt) + len(self.new)

    @property
    def cached(self) -> int:
        """Tokens that it may ever have in the cache: the last new one is never fed back."""
        return len(self.prompt) + self.limit - 1

    def ended(self, end_tokens: tuple[int, ...]) -> bool:
        return len(self.new) >= self.limit or (bool(self.new) and self.new[-1] in end_tokens)


class Scheduler:
    """Admits sequences in order while there are pages and rows, and takes back the pages of those that ended.

    max_batch  sequences that run at once; max_tokens  of the prompts that are admitted at once, or a single prompt
    """

    def __init__(self, num_blocks: int, block_size: int, max_batch: int, max_tokens: int):
        self.allocator, self.max_batch, self.max_tokens = BlockAllocator(num_blocks, block_size), max_batch, max_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequences: list[Sequence]) -> None:
        self.waiting.extend(sequences)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def admit(self) -> list[Sequence]:
        """Give pages to the sequences that may start now; they are to be prefilled."""
        fresh, tokens = [], 0
        while self.waiting and len(self.running) + len(fresh) < self.max_batch:
            first = self.waiting[0]
            tokens += len(first.prompt)
            if self.allocator.blocks_for(first.cached) > len(self.allocator.free) or fresh and tokens > self.max_tokens:
                break
            first.blocks = self.allocator.allocate(first.cached)
            fresh.append(self.waiting.popleft())
        self.running += fresh
        return fresh

    def retire(self, end_tokens: tuple[int, ...]) -> list[Sequence]:
        """Those that have ended, whose pages are free again."""
        ended = [s for s in self.running if s.ended(end_tokens)]
        self.running = [s for s in self.running if not s.ended(end_tokens)]
        for s in ended:
            self.allocator.release(s.blocks)
        return ended

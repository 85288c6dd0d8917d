"""The engine: prompts in, tokens out. Prefill once, then decode a token a step, over pages of the KV cache.

Sequences wait until the cache has pages for all they may need, so that none is ever thrown out half-way.
On a GPU, decode steps are CUDA graphs of fused kernels (`decoder.py`); anywhere else, or where those can't run,
they are gpt2.py's forward, and `why_eager` says why.
"""
from __future__ import annotations

import sys
import time
from array import array
from collections import deque
from dataclasses import dataclass, field

import torch

from ..attention.kv_cache import BlockAllocator, allocate_kv_cache
from ..attention.metadata import decode_metadata, prefill_metadata
from ..config import CacheConfig
from ..errors import UserError
from ..request import SamplingParams, check_prompts
from ..trace import Trace
from .decode_graph import GraphDecoder, cannot_graph
from .graph import CaptureError
from .ladder import Rung
from .sampling import sample


@dataclass
class Sequence:
    """One prompt and what came of it. The prompt becomes an array once, which a prefill can copy as it is."""

    number: int
    prompt: list[int] | array
    limit: int  # new tokens at most
    blocks: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.prompt = array("q", self.prompt)

    def ended(self, end_tokens: tuple[int, ...]) -> bool:
        return len(self.new) >= self.limit or (bool(self.new) and self.new[-1] in end_tokens)


class Engine:
    """Greedy or sampled generation for batches of unequal prompts.

    model   a `GPT2Model` with weights
    cache   pages and dtype; `num_blocks` None makes room for the whole batch
    rung    which step of `ladder.py` decodes; None is the fastest that can run here
    After `generate`, `first_forward` holds {op: count} of the first forward's collectives, and `seconds`
    the time of prefill and of each decode step.
    """

    def __init__(self, model, cache: CacheConfig = CacheConfig(), max_batch: int = 256, rung: Rung | None = None):
        self.model, self.cache, self.max_batch = model, cache, max_batch
        self.world, self.config = model.world, model.config
        self.why_eager = cannot_graph(model, cache) if rung is None or rung.graph else "it was asked for"
        self.rung = rung
        self.kv_caches: list[torch.Tensor] = []
        self.decoder: GraphDecoder | None = None
        self.prefills = None  # a GraphPrefill, once it is needed
        self.first_forward: dict[str, int] | None = None
        self.seconds: dict[str, list[float]] = {"prefill": [], "decode": []}

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_new_tokens: int = 16,
                 params: SamplingParams = SamplingParams()) -> list[list[int]]:
        """New tokens of each prompt, in order. A sequence ends with the end token, at max_new_tokens, or where
        the model's positions end."""
        check_prompts(self.config, prompts, max_new_tokens)
        sequences = [Sequence(i, p, min(max_new_tokens, self.config.n_positions - len(p)) or 1)
                     for i, p in enumerate(prompts)]
        allocator = self._cache_for(sequences)
        waiting, running = deque(sequences), []
        while waiting or running:
            fresh = self._admit(waiting, running, allocator)
            if fresh:
                start = time.perf_counter()
                self._prefill(fresh, params)
                self.seconds["prefill"].append(time.perf_counter() - start)
                running += fresh
            else:
                self.seconds["decode"] += self._decode(running, params)
            for s in [s for s in running if s.ended(self.config.end_tokens)]:
                allocator.release(s.blocks)
                running.remove(s)
        return [s.new for s in sequences]

    def _cache_for(self, sequences) -> BlockAllocator:
        size = self.cache.block_size
        need = [-(-(len(s.prompt) + s.limit) // size) for s in sequences]
        blocks = self.cache.num_blocks or sum(sorted(need)[-self.max_batch:]) + 1
        if max(need) > blocks - 1:
            raise UserError(f"the KV cache has {blocks - 1} pages of {size} tokens, one prompt needs {max(need)}: "
                            "give it more pages, or ask for fewer tokens")
        if not self.kv_caches or self.kv_caches[0].shape[1] < blocks:  # graphs hold the cache's addresses: keep both
            self.close()
            impl = self.model.impl
            dtype = impl.dtype if self.cache.cache_dtype == "auto" else torch.float8_e4m3fn
            self.kv_caches = allocate_kv_cache(self.config.n_layer, blocks, size, impl.num_heads, impl.head_size, dtype,
                                               self.world.device)
        return BlockAllocator(blocks, size)

    def _admit(self, waiting, running, allocator) -> list[Sequence]:
        fresh = []
        while waiting and len(running) + len(fresh) < self.max_batch:
            tokens = len(waiting[0].prompt) + waiting[0].limit
            if allocator.blocks_for(tokens) > len(allocator.free):
                break
            waiting[0].blocks = allocator.allocate(tokens)
            fresh.append(waiting.popleft())
        return fresh

    def prefill_call(self, prompts: list[list[int]]):
        """A prefill of these prompts as a call without arguments, for whoever times it: -> best next ids (B,)."""
        sequences = [Sequence(i, p, 1) for i, p in enumerate(prompts)]
        self._admit(deque(sequences), [], self._cache_for(sequences))
        return torch.inference_mode()(lambda: self._prefill_logits(sequences).argmax(-1))

    def _prefill(self, sequences, params):
        if self.first_forward is not None:
            return self._append(sequences, self._prefill_logits(sequences), params)
        trace, self.world.trace = self.world.trace, self.world.trace or Trace()
        logits = self._prefill_logits(sequences)
        self.first_forward = self.world.trace.counts()
        self.world.trace = trace
        self._append(sequences, logits, params)

    def _prefill_logits(self, sequences) -> torch.Tensor:
        """Logits of each prompt's last position, (B, V)."""
        if self.why_eager is None and self.world.trace is None:
            from .prefill_graph import GraphPrefill

            self.prefills = self.prefills or GraphPrefill(self.model, self.kv_caches, self.cache.block_size)
            logits = self.prefills.logits(sequences)
            if logits is not None:
                return logits

        def send(x):  # what the host knows is counted on the host, and sent without waiting for the device
            return x.pin_memory().to(self.world.device, non_blocking=True) if self.world.device.type == "cuda" else x

        lengths = [len(s.prompt) for s in sequences]
        meta, positions = prefill_metadata(lengths, self._block_table(sequences), self.cache.block_size)
        meta.query_start_loc, meta.seq_lens, meta.block_table, meta.slot_mapping, positions, ids = map(send, (
            meta.query_start_loc, meta.seq_lens, meta.block_table, meta.slot_mapping, positions,
            torch.tensor([t for s in sequences for t in s.prompt])))
        return self.model.logits(self.model(ids, positions, self.kv_caches, meta)[meta.query_start_loc[1:].long() - 1])

    def _decode(self, sequences, params) -> list[float]:
        """One step, or on CUDA graphs all steps until a sequence ends; seconds of each."""
        if self.why_eager is None and self.world.trace is None:
            self.decoder = self.decoder or GraphDecoder(self.model, self.kv_caches, self.cache.block_size, self.rung)
            try:
                return self.decoder.run(sequences, params)
            except CaptureError as e:
                self.why_eager = f"a decode step could not be captured in a CUDA graph ({e})"
                print(f"decoding without CUDA graphs: {self.why_eager}", file=sys.stderr)
        start, device = time.perf_counter(), self.world.device
        ids = torch.tensor([s.new[-1] for s in sequences], device=device)
        lengths = [len(s.prompt) + len(s.new) for s in sequences]
        positions = torch.tensor(lengths, device=device) - 1
        table = self._block_table(sequences).to(device)
        meta = decode_metadata(positions, table, max(lengths), self.cache.block_size)
        self._append(sequences, self.model.logits(self.model(ids, positions, self.kv_caches, meta)), params)
        return [time.perf_counter() - start]

    def _append(self, sequences, logits, params):
        number = torch.tensor([s.number for s in sequences], device=logits.device)
        position = torch.tensor([len(s.prompt) + len(s.new) for s in sequences], device=logits.device)
        for s, token in zip(sequences, sample(logits, params, number, position).tolist()):
            s.new.append(token)

    def _block_table(self, sequences) -> torch.Tensor:
        width = max(len(s.blocks) for s in sequences)
        return torch.tensor([s.blocks + [0] * (width - len(s.blocks)) for s in sequences], dtype=torch.int32)

    def close(self) -> None:
        """Give back the cache, and the graphs that hold its addresses."""
        self.decoder, self.prefills, self.kv_caches = None, None, []


@torch.inference_mode()
def prompt_logits(model, ids: list[int]) -> torch.Tensor:
    """Logits of every position of one prompt: ids (T) -> (T, V) float32."""
    check_prompts(model.config, [ids])
    device, cache = model.world.device, CacheConfig(model.impl.block_size)
    pages = -(-len(ids) // cache.block_size)
    kv = allocate_kv_cache(model.config.n_layer, pages + 1, cache.block_size, model.impl.num_heads,
                           model.impl.head_size, model.impl.dtype, device)
    table = torch.arange(1, pages + 1, dtype=torch.int32, device=device)[None]
    meta, positions = prefill_metadata([len(ids)], table, cache.block_size)
    return model.logits(model(torch.tensor(ids, device=device), positions, kv, meta)).float()

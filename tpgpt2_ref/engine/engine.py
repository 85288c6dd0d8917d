"""The engine: prompts in, tokens out. Prefill once, then decode a token a step, over pages of the KV cache.

On a GPU, prefills and decode steps are CUDA graphs of fused kernels (`prefill_graph.py`, `decode_graph.py`); anywhere
else, or where those can't run, they are gpt2.py's forward, and `why_eager` says why.
"""
from __future__ import annotations

import time
from array import array
from collections import Counter

import torch

from ..attention.metadata import decode_metadata, prefill_metadata
from ..errors import UserError
from ..kernels import plain
from ..noise import seed_of
from ..parallel.collectives import gather_objects
from ..request import SamplingParams, check_prompts
from ..trace import Trace
from .batch import block_table, send
from .cluster_step import ClusterSteps, compile_ahead, why_no_clusters
from .decode_graph import GraphDecoder, cannot_capture, cannot_graph, cannot_prefill, choose_rung
from .graph import CapturedStep, GraphedPart
from .ladder import Rung
from .memory import Plan, free_bytes, needs_of, share
from .sampling import sample
from .scheduler import Scheduler, Sequence


class Engine:
    """Greedy or sampled generation for batches of unequal prompts.

    model       a `GPT2Model` with weights; its kernel says what a page of the cache is
    num_blocks  pages of the cache; None makes room for the whole batch, or for as much of it as memory holds
    max_batch   sequences that run at once, or fewer where memory is short (`memory.py`)
    rung        which step of `ladder.py` decodes; None is the fastest that can run here
    capture     how steps are recorded in graphs; `graph.PlainStep` takes the graphs' way on any machine
    clusters    what makes the steps of cluster kernels, see `GraphDecoder`
    halves      whether a prefill of several prompts hides its sums (`halves.py`); None: where that is faster
    After `generate`, `first_forward` holds {op: count} of the first forward's collectives, and `seconds`
    the time of prefill and of each decode step.
    """

    def __init__(self, model, num_blocks: int | None = None, max_batch: int = 256, rung: Rung | None = None,
                 capture=CapturedStep, halves: bool | None = None, clusters=ClusterSteps):
        self.model, self.num_blocks, self.max_batch, self.capture = model, num_blocks, max_batch, capture
        self.halves, self.clusters = halves, clusters
        self.world, self.config = model.world, model.config
        self.rung, why = choose_rung(model) if rung is None else (rung, None)
        if rung is not None and not rung.graph:
            why = "it was asked for"
        elif rung is not None:
            why = cannot_capture(model) if rung.readable else cannot_graph(model)
        why_no_prefill = why or cannot_prefill(model)
        if capture is not CapturedStep:
            why = why_no_prefill = None
        if self.rung.clusters and why is None and clusters is ClusterSteps:
            compile_ahead(model)
        self.decoding, self.prefilling = GraphedPart("decoding", why), GraphedPart("prefilling", why_no_prefill)
        self.kv_caches: list[torch.Tensor] = []
        self.plan: Plan | None = None  # how the memory is shared out, with the cache
        self.scheduler: Scheduler | None = None
        self.decoder: GraphDecoder | None = None
        self.prefills = None  # a GraphPrefill, once it is needed
        self.first_forward: dict[str, int] | None = None
        self.seconds: dict[str, list[float]] = {"prefill": [], "decode": []}

    @property
    def why_eager(self) -> str | None:
        """Why decode steps are no CUDA graphs, or None if they are."""
        return self.decoding.why_not

    @property
    def why_no_clusters(self) -> str | None:
        """Why no decode step so far was one of cluster kernels, or None if one was."""
        if self.decoder and self.decoder.clusters:
            return None
        if self.why_eager or not self.rung.clusters:
            return self.why_eager or why_no_clusters(self.model) or f"the rung is {self.rung.name}"
        return f"up to {self.rung.clusters} rows are decoded so, without top-k and top-p"

    @property
    def decode_attention(self) -> str:
        """What attends in a decode step: a backend, or the fused steps' own kernel."""
        if self.why_eager is not None or "attention" not in self.rung.fused or self.rung.readable:
            return self.model.impl.name
        return "kernels.clusters" if self.decoder and self.decoder.clusters else "kernels.decode_attention"

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_new_tokens: int = 16,
                 params: SamplingParams = SamplingParams()) -> list[list[int]]:
        """New tokens of each prompt, in order. A sequence ends with the end token, at max_new_tokens, or where
        the model's positions end."""
        check_prompts(self.config, prompts, max_new_tokens)
        sequences = self.add(prompts, max_new_tokens, params.seed)
        while self.scheduler.busy:
            self.step(params)
        return [s.new for s in sequences]

    def add(self, prompts: list[list[int]], max_new_tokens: int, seed: int = 0) -> list[Sequence]:
        """Have the scheduler wait with these prompts for their turn. Each copy of a prompt draws with another seed."""
        sequences, copies = [], Counter()
        for prompt in (array("q", prompt) for prompt in prompts):
            limit = max(1, min(max_new_tokens, self.config.n_positions - len(prompt)))
            sequences.append(Sequence(prompt, limit, seed_of(seed, prompt, copies[prompt.tobytes()])))
            copies[prompt.tobytes()] += 1
        self.scheduler = self._scheduler_for(sequences)
        self.scheduler.add(sequences)
        return sequences

    def step(self, params: SamplingParams) -> None:
        """Schedule, run, postprocess: prefill what may start now, or else decode what runs, and retire what ended."""
        fresh, start = self.scheduler.admit(), time.perf_counter()
        if fresh:
            self._append(fresh, self._counted(lambda: self._prefill(fresh)), params)
            self.seconds["prefill"].append(time.perf_counter() - start)
        else:
            self.seconds["decode"] += self._decode(self.scheduler.running, params)
        self.scheduler.retire(self.config.end_tokens)

    def prefill_call(self, prompts: list[list[int]]):
        """A prefill of these prompts as a call without arguments, for who times it: -> best next ids (B,)."""
        self.add(prompts, 1)
        sequences = self.scheduler.admit()
        if len(sequences) < len(prompts):
            raise UserError(f"{len(sequences)} of these {len(prompts)} prompts are all that one prefill can take here")
        return torch.inference_mode()(lambda: self._prefill(sequences).argmax(-1))

    def _scheduler_for(self, sequences: list[Sequence]) -> Scheduler:
        """Pages for the most that may run at once, or for as much of it as there is memory for."""
        size = self.model.impl.block_size
        need = [-(-s.cached // size) for s in sequences]
        blocks = self.num_blocks or sum(sorted(need)[-self.max_batch:]) + 1
        if not self.kv_caches or self.kv_caches[0].shape[1] < blocks:  # graphs hold the cache's addresses: keep both
            self.close()
            self.plan = self._plan(blocks)
            if max(need) > self.plan.blocks - 1:
                have, more = ("the KV cache has", "give it more pages") if self.num_blocks else (
                    "memory holds", "free some of it")
                raise UserError(f"{have} {max(0, self.plan.blocks - 1)} pages of {size} tokens, one prompt needs "
                                f"{max(need)}: {more}, or ask for fewer tokens")
            self.kv_caches = self.model.new_kv_caches(self.plan.blocks)
        return Scheduler(self.plan.blocks, size, self.plan.rows, self.plan.tokens)

    def _plan(self, blocks: int) -> Plan:
        """By the rank that has least: all ranks must schedule, and capture, alike."""
        free = min(gather_objects(self._free(), self.world))
        return share(free, needs_of(self.model), blocks, self.max_batch, self.config.n_positions, bool(self.num_blocks))

    def _free(self) -> int:
        return free_bytes(self.world.device)

    def _counted(self, forward):
        """What `forward` returns; the first time, its collectives are counted."""
        if self.first_forward is not None:
            return forward()
        trace, self.world.trace = self.world.trace, self.world.trace or Trace()
        try:
            result = forward()
            self.first_forward = self.world.trace.counts()
        finally:
            self.world.trace = trace
        return result

    def _prefill(self, sequences: list[Sequence]) -> torch.Tensor:
        """Logits of each prompt's last position, (B, V)."""
        if self.world.trace is None and (logits := self.prefilling.run(lambda: self._prefills().logits(sequences))) \
                is not None:
            return logits
        meta, positions = prefill_metadata([len(s.prompt) for s in sequences], torch.from_numpy(block_table(sequences)),
                                           self.model.impl.block_size)
        shape = meta.block_table.shape
        ids, positions, meta.slot_mapping, start, lens, table = send(
            [[t for s in sequences for t in s.prompt], positions, meta.slot_mapping, meta.query_start_loc,
             meta.seq_lens, meta.block_table], self.world.device)
        meta.query_start_loc, meta.seq_lens, meta.block_table = start.int(), lens.int(), table.view(shape).int()
        return self.model.logits(self.model(ids, positions, self.kv_caches, meta)[start[1:] - 1])

    def _prefills(self):
        if self.prefills is None:
            from .prefill_graph import GraphPrefill

            kernels = plain
            if self.rung.fused:
                from ..kernels import prefill as kernels
            self.prefills = GraphPrefill(self.model, self.kv_caches, kernels, self.capture, self.halves,
                                         self.plan.graphs)
        return self.prefills

    def _decode(self, sequences: list[Sequence], params: SamplingParams) -> list[float]:
        """One step, or on CUDA graphs all steps until a sequence ends; seconds of each."""
        if self.world.trace is None and (times := self.decoding.run(lambda: self._decoder().run(sequences, params))) \
                is not None:
            return times
        start = time.perf_counter()
        table = block_table(sequences)
        ids, positions, pages = send([[s.new[-1] for s in sequences], [s.length - 1 for s in sequences], table],
                                     self.world.device)
        meta = decode_metadata(positions, pages.view(table.shape).int(), max(s.length for s in sequences),
                               self.model.impl.block_size)
        self._append(sequences, self.model.logits(self.model(ids, positions, self.kv_caches, meta)), params)
        return [time.perf_counter() - start]

    def _decoder(self) -> GraphDecoder:
        self.decoder = self.decoder or GraphDecoder(self.model, self.kv_caches, self.rung, self.capture,
                                                    self.clusters)
        return self.decoder

    def _append(self, sequences: list[Sequence], logits: torch.Tensor, params: SamplingParams) -> None:
        seed, position = send([[s.seed for s in sequences], [s.length for s in sequences]], logits.device)
        for s, token in zip(sequences, sample(logits, params, seed, position).tolist()):
            s.new.append(token)

    def close(self) -> None:
        """Give back the cache, and the graphs that hold its addresses."""
        self.decoder, self.prefills, self.kv_caches = None, None, []


@torch.inference_mode()
def prompt_logits(model, ids: list[int]) -> torch.Tensor:
    """Logits of every position of one prompt: ids (T) -> (T, V) float32."""
    check_prompts(model.config, [ids])
    device, size = model.world.device, model.impl.block_size
    pages = -(-len(ids) // size)
    table = torch.arange(1, pages + 1, dtype=torch.int32, device=device)[None]  # (1, pages)
    meta, positions = prefill_metadata([len(ids)], table, size)
    hidden = model(torch.tensor(ids, device=device), positions, model.new_kv_caches(pages + 1), meta)  # (T, D)
    return model.logits(hidden).float()

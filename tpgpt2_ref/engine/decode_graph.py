"""Decode steps as CUDA graphs, launched ahead of the host, which looks for the tokens a step or two later.

A graph's tensors stay where they are, so there is one state and one graph for each of `graph_batch`'s sizes; seeds,
temperature, top-k and top-p are data. The last kernel of a step writes its tokens into the host's pinned memory: the
host reads them there, while the next step already runs. A sequence that ended is noticed up to LAG - 1 steps late, and
what it got since is dropped.
"""
from __future__ import annotations

import time
from dataclasses import replace
from typing import Callable

import numpy as np
import torch

from ..errors import RankError
from ..kernels.clusters.shape import rows_worth_it
from ..kernels.state import DecodeState
from ..request import SamplingParams
from .batch import block_table, send
from .cluster_step import ClusterSteps, why_no_clusters
from .decode_step import decode_step, readable_step
from .graph import CapturedStep
from .ladder import LADDER, Rung, rungs
from .scheduler import Sequence

LAG = 3  # steps in flight: the GPU never waits for the host
SILENCE = 10.0  # seconds without a token after which the GPU is asked what became of it


def choose_rung(model) -> tuple[Rung, str | None]:
    """The fastest rung that can decode this model here, and why it is none with CUDA graphs if it isn't.

    The fused steps have an attention of their own, so a backend that was asked for by name decodes in gpt2.py's step.
    """
    why = cannot_graph(model)
    if why is None:
        *_, below, fastest = rungs_of(model)
        if not fastest.clusters:
            return fastest, None
        rows = rows_worth_it(model.config.n_embd, model.world.size)
        return replace(fastest, clusters=rows) if rows else below, None
    if model.choice.source != "platform":
        why = cannot_capture(model)
        if why is None:
            return next(rung for rung in LADDER if rung.graph), None
    return LADDER[0], why


def rungs_of(model) -> tuple[Rung, ...]:
    """The rungs that a model which fused kernels can decode has on this machine."""
    return rungs(model.world.size, is_hopper(model.world.device), why_no_clusters(model) is None)


def no_graphs(model) -> str | None:
    """Why neither gpt2.py's decode step nor the fused one can be a CUDA graph here, or None."""
    device = model.world.device
    if device.type != "cuda":
        return "CUDA graphs need a GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the fused kernels need a GPU of capability 8.0 or newer"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "the fused kernels need Triton"
    return None if model.plan == "shipped" else f"the plan {model.plan} is for reading, by gpt2.py"


def cannot_capture(model) -> str | None:
    """Why gpt2.py's decode step can't be a CUDA graph, or None if it can."""
    if why := no_graphs(model):
        return why
    return None if model.impl.cuda_graphs else f"{model.impl.name} asks the GPU for lengths while it is enqueued"


def cannot_graph(model) -> str | None:
    """Why decode steps of this model can't be CUDA graphs of fused kernels, or None if they can."""
    if why := no_graphs(model):
        return why
    impl = model.impl
    if impl.dtype not in (torch.float16, torch.bfloat16):
        return f"the fused kernels compute in float16 or bfloat16, not {str(impl.dtype).removeprefix('torch.')}"
    if impl.cache_dtype != "auto":
        return f"the fused attention does not read a cache of {impl.cache_dtype}"
    if impl.head_size & (impl.head_size - 1):
        return f"the fused attention takes heads of a power of two, not {impl.head_size}"
    if model.choice.source != "platform":
        return f"{impl.name} was asked for, and only gpt2.py runs it"
    return None


def cannot_prefill(model) -> str | None:
    """Why prefills of this model can't be CUDA graphs, or None if they can."""
    impl = model.impl
    if why := cannot_capture(model):
        return why
    if not impl.prefill_graphs:
        return f"{impl.name}'s prefill is not for CUDA graphs"
    if impl.dtype not in (torch.float16, torch.bfloat16):
        return "the fused kernels compute in float16 or bfloat16"
    if impl.cache_dtype != "auto":
        return f"the fused cache write does not write a cache of {impl.cache_dtype}"
    return None


def graph_batch(batch: int) -> int:
    """Rows of the graph for a batch: 1, 2, 4, 8, and then steps of 16."""
    return 1 << (batch - 1).bit_length() if batch <= 8 else -(-batch // 16) * 16


def is_hopper(device: torch.device) -> bool:
    """Whether the GPU knows programmatic dependent launch."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


class GraphDecoder:
    """Runs decode steps for sequences that have pages and a first token. The world closes it before itself.

    rung      which step
    capture   how it is recorded: `graph.PlainStep` does without a GPU
    clusters  what makes the steps of cluster kernels: with `ClusterSteps(load=emulated)` it does without one too
    """

    def __init__(self, model, kv_caches: list[torch.Tensor], rung: Rung, capture=CapturedStep,
                 clusters: Callable = ClusterSteps):
        self.model, self.kv_caches, self.rung, self.capture = model, kv_caches, rung, capture
        self.make_clusters = clusters
        self.kernels, self.clusters = rung.kernels(), None
        model.world.before_close.add(self)
        self.pool = None  # the graphs' memory, shared: they never run at once
        self.steps: dict[tuple[int, bool], tuple[DecodeState, CapturedStep]] = {}

    def run(self, sequences: list[Sequence], params: SamplingParams) -> list[float]:
        """Decode until a sequence has ended; seconds of each step, as the host saw its tokens arrive."""
        state, step = self.step_for(len(sequences), self.filters(params))
        positions = self.fill(state, sequences, params)
        steps = min(s.limit - len(s.new) for s in sequences)
        rows = np.arange(len(sequences))
        tokens, seen, launched, times = state.tokens.numpy(), 0, 0, [time.perf_counter()]
        while seen < launched or launched < steps:
            while launched < steps and launched - seen < LAG:
                step.replay()
                launched += 1
            for s, token in zip(sequences, self.arrived(tokens, rows, positions + 1 + seen)):
                if not s.ended(self.model.config.end_tokens):
                    s.new.append(int(token))
            seen += 1
            times.append(time.perf_counter())
            if any(s.ended(self.model.config.end_tokens) for s in sequences):
                steps = launched  # what is in flight still counts for the others
        for algorithm in (*self.model.world.all_reduces, *([self.clusters] if self.clusters else [])):
            algorithm.check()
        return [b - a for a, b in zip(times, times[1:])]

    def filters(self, params: SamplingParams) -> bool:
        """Whether the next token takes all logits in one place: for top-k and top-p, and in gpt2.py for any draw."""
        return params.temperature > 0 and (self.rung.readable or params.top_k > 0 or params.top_p < 1)

    def step_for(self, batch: int, filtered: bool) -> tuple[DecodeState, CapturedStep]:
        """The smallest captured step that holds the batch, if it is at most twice as large, or a new one."""
        rows = graph_batch(batch)
        most = self.rung.clusters if rows <= self.rung.clusters else 2 * rows  # what clusters can decode, they do
        fitting = [key for key in self.steps if rows <= key[0] <= min(most, 2 * rows) and key[1] == filtered]
        if not fitting:
            state, run = self.uncaptured(batch, filtered)
            step = self.capture(run, self.pool)
            self.pool = step.pool
            fitting = [(rows, filtered)]
            self.steps[fitting[0]] = state, step
        return self.steps[min(fitting)]

    def uncaptured(self, batch: int, filtered: bool = False) -> tuple[DecodeState, Callable[[], None]]:
        """A step for batches up to `graph_batch(batch)`, as a call, and the state that it works on."""
        state = DecodeState.empty(graph_batch(batch), self.model.impl.num_heads, self.model.config.n_positions,
                                  self.model.world.device, self.model.impl.block_size)
        if state.batch <= self.rung.clusters and not filtered:
            self.clusters = self.clusters or self.make_clusters(self.model, self.kv_caches)
            return state, self.clusters.step(state)
        run, kernels = readable_step if self.rung.readable else decode_step, self.kernels
        model, kv_caches = self.model, self.kv_caches  # not `self`, which holds the step that will hold the call
        return state, lambda: run(model, kv_caches, state, kernels, filtered)

    def fill(self, state: DecodeState, sequences: list[Sequence], params: SamplingParams) -> np.ndarray:
        """Put the sequences into the first rows of `state`; their positions (rows,)."""
        rows = np.zeros((4, state.batch), dtype=np.int64)  # what is over: position 0 of page 0, and not alive
        rows[:, : len(sequences)] = np.array([(s.new[-1], s.length - 1, 1, s.seed) for s in sequences]).T
        state.tokens.fill_(-1)  # nothing is in flight
        *found, table = send([*rows, block_table(sequences, state.block_table.shape[1], state.batch)],
                             self.model.world.device)
        for tensor, numbers in zip((state.ids, state.positions, state.live, state.seeds), found):
            tensor.copy_(numbers)
        state.block_table.copy_(table.view_as(state.block_table))
        state.sampling.copy_(torch.tensor([params.temperature, params.top_k, params.top_p]))
        return rows[1, : len(sequences)]

    def arrived(self, tokens, rows, positions):
        """Wait for the rows' tokens at these positions in the host's memory."""
        start = time.perf_counter()
        while True:
            found = tokens[rows, positions]
            if (found >= 0).all():
                return found
            if time.perf_counter() - start > SILENCE:
                torch.cuda.synchronize()  # raises what went wrong on the GPU, if anything did
                if (tokens[rows, positions] < 0).any():
                    raise RankError(f"rank {self.model.world.rank}: a decode step ended without its tokens")

    def close(self) -> None:
        """Drop the graphs: they hold collectives of a process group that is about to close."""
        self.steps.clear()
        self.clusters = None

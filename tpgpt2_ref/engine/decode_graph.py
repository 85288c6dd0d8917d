"""Decode steps as CUDA graphs, launched ahead of the host, which looks for the tokens a step or two later.

A graph's tensors stay where they are, so there is one state and one graph for each batch size, padded up to a power
of two. The last kernel of a step writes its tokens into the host's pinned memory: the host reads them there, while
the next step already runs. A sequence that ended is noticed up to LAG - 1 steps late, and what it got since is dropped.
"""
from __future__ import annotations

import time
from typing import Callable

import torch

from ..config import CacheConfig
from ..errors import RankError
from ..kernels.state import DecodeState
from ..request import SamplingParams
from .decode_step import decode_step, readable_step
from .graph import CapturedStep
from .ladder import Rung, rungs

LAG = 3  # steps in flight: the GPU never waits for the host
SILENCE = 10.0  # seconds without a token after which the GPU is asked what became of it


def cannot_graph(model, cache: CacheConfig = CacheConfig()) -> str | None:
    """Why decode steps of this model can't be CUDA graphs of fused kernels, or None if they can."""
    world, impl = model.world, model.impl
    if world.device.type != "cuda":
        return "CUDA graphs need a GPU"
    if torch.cuda.get_device_capability(world.device) < (8, 0):
        return "the fused kernels need a GPU of capability 8.0 or newer"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "the fused kernels need Triton"
    if model.plan != "shipped":
        return f"the plan {model.plan} is for reading, by gpt2.py"
    if impl.dtype not in (torch.float16, torch.bfloat16):
        return f"the fused kernels compute in float16 or bfloat16, not {str(impl.dtype).removeprefix('torch.')}"
    if cache.cache_dtype != "auto":
        return f"the fused attention does not read a cache of {cache.cache_dtype}"
    if impl.head_size & (impl.head_size - 1):
        return f"the fused attention takes heads of a power of two, not {impl.head_size}"
    if model.choice.source != "platform":
        return f"{impl.name} was asked for, and only gpt2.py runs it"
    return None


def is_hopper(device: torch.device) -> bool:
    """Whether the GPU knows programmatic dependent launch."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


class GraphDecoder:
    """Runs decode steps for sequences that have pages and a first token. The world closes it before itself.

    rung  which step; None is the fastest that this machine can run
    """

    def __init__(self, model, kv_caches: list[torch.Tensor], block_size: int, rung: Rung | None = None):
        self.model, self.kv_caches, self.block_size = model, kv_caches, block_size
        self.rung = rung or rungs(model.world.size, is_hopper(model.world.device))[-1]
        self.kernels = self.rung.kernels()
        model.world.before_close.add(self)
        self.pool = None  # the graphs' memory, shared: they never run at once
        self.steps: dict[tuple, tuple[DecodeState, CapturedStep]] = {}

    def run(self, sequences: list, params: SamplingParams) -> list[float]:
        """Decode until a sequence has ended; seconds of each step, as the host saw its tokens arrive."""
        state, step = self.step_for(len(sequences), params)
        positions = self.fill(state, sequences, params)
        steps = min(s.limit - len(s.new) for s in sequences)
        rows = torch.arange(len(sequences)).numpy()
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
        for algorithm in self.model.world.all_reduces:
            algorithm.check()
        return [b - a for a, b in zip(times, times[1:])]

    def step_for(self, batch: int, params: SamplingParams) -> tuple[DecodeState, CapturedStep]:
        """The smallest captured step that holds the batch, or a new one."""
        filtered = params if params.temperature and (params.top_k or params.top_p < 1) else None
        if self.rung.readable:
            filtered = params
        fitting = [key for key in self.steps if key[0] >= batch and key[1] == filtered]
        if not fitting:
            state, run = self.uncaptured(batch, filtered)
            step = CapturedStep(run, self.pool)
            self.pool = step.pool
            fitting = [(state.batch, filtered)]
            self.steps[fitting[0]] = state, step
        return self.steps[min(fitting, key=lambda key: key[0])]

    def uncaptured(self, batch: int, filtered: SamplingParams | None) -> tuple[DecodeState, Callable[[], None]]:
        """A step for batches padded up to a power of two, as a call, and the state that it works on."""
        state = DecodeState.empty(1 << (batch - 1).bit_length(), self.model.impl.num_heads,
                                  self.model.config.n_positions, self.model.world.device, self.block_size)
        run = readable_step if self.rung.readable else decode_step
        return state, lambda: run(self.model, self.kv_caches, state, self.kernels, filtered)

    def fill(self, state: DecodeState, sequences: list, params: SamplingParams):
        """Put the sequences into the first rows of `state`; their positions (rows,), as an array."""
        rows, more = len(sequences), state.batch - len(sequences)
        positions = [len(s.prompt) + len(s.new) - 1 for s in sequences]
        width = state.block_table.shape[1]
        temperature = torch.tensor(params.temperature).view(torch.int32).item()
        seed = torch.tensor(params.seed).int().item()
        state.tokens.fill_(-1)  # nothing is in flight
        for tensor, values in ((state.ids, [s.new[-1] for s in sequences] + [0] * more),
                               (state.positions, positions + [0] * more), (state.live, [1] * rows + [0] * more),
                               (state.sampling, [temperature, seed, *(s.number for s in sequences), *[0] * more]),
                               (state.block_table, [s.blocks + [0] * (width - len(s.blocks)) for s in sequences]
                                + [[0] * width] * more)):
            tensor.copy_(torch.tensor(values, dtype=tensor.dtype))
        return torch.tensor(positions).numpy()

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

"""Prefill: whole prompts to the last positions' logits and their best tokens on the host.

Wall clock of the engine's prefill, host work included, and the GPU's own time (`stopwatch.gpu_microseconds`). Rungs:
gpt2.py ("eager"), our kernels between cuBLAS's products ("fused"), and the same in two halves that hide each other's
sums ("halves"). Hugging Face transformers in the same run where it is installed and one rank runs. The command around
it: `commands/bench/prefill.py`.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..engine import Engine
from ..engine.ladder import LADDER
from .decode import random_prompts, sum_name
from .peer import peer_model, prefill_step
from .stopwatch import gpu_microseconds, host_microseconds, spread

RUNGS = ("eager", "fused", "halves")


def sweep(model, name: str, dtype: str, batches, prompt_lens, repeat: int,
          with_peer: bool = True) -> Iterator[tuple[dict, list[float]]]:
    """(row, its samples of the wall clock in microseconds), shape by shape, through the rungs and the peer."""
    world = model.world
    peer = peer_model(model.config, dtype, world) if with_peer else None
    for batch in batches:
        for length in prompt_lens:
            prompts = random_prompts(model.config.vocab_size, batch, length)
            case = (name, dtype, world.size, batch, length)
            for rung in RUNGS:
                engine = Engine(model, rung=LADDER[0] if rung == "eager" else None, halves=rung == "halves")
                ranks = 1 if world.alone else world.size
                if rung != "eager" and engine.why_eager or rung == "halves" and why_no_halves(ranks, batch):
                    continue
                wall, gpu = times(engine.prefill_call(prompts), world.device, repeat)
                sums = world.beside.name if rung == "halves" and world.beside else sum_name(model, batch * length)
                yield row("tpgpt2", rung, sums, *case, wall, gpu), wall
                if rung != "eager" and (engine.prefilling.why_not or not engine.prefills.buckets):
                    raise RuntimeError(f"the {rung} prefill could not be captured in a CUDA graph")
                engine.close()
            if peer is not None:
                wall, gpu = times(prefill_step(peer, prompts), world.device, repeat)
                yield row("transformers", "forward", "none", *case, wall, gpu), wall


def why_no_halves(ranks: int, batch: int) -> str | None:
    """Why so many prompts can't run in two halves at all, whether or not that would pay."""
    return "one rank has no sum to hide" if ranks == 1 else "one prompt is not cut" if batch == 1 else None


def times(step: Callable[[], torch.Tensor], device: torch.device,
          repeat: int) -> tuple[list[float], list[float] | None]:
    """Microseconds: (wall clock of `step` until its tokens are on the host, the GPU's own time or None)."""
    for _ in range(3):
        step().tolist()
    wall = [host_microseconds(lambda: step().tolist()) for _ in range(repeat)]
    return wall, [gpu_microseconds(step) for _ in range(repeat)] if device.type == "cuda" else None


def row(engine: str, rung: str, sums: str, model: str, dtype: str, tp: int, batch: int, prompt_len: int,
        wall: list[float], gpu: list[float] | None) -> dict:
    """A row of `prefill`, as `recorded/results.py` wants it."""
    return {"engine": engine, "model": model.removeprefix("random:"), "dtype": dtype, "tp": tp, "sum": sums,
            "rung": rung, "batch": batch, "prompt_len": prompt_len, **spread(wall, "wall_us"),
            **(spread(gpu, "gpu_us") if gpu else {"gpu_us_median": None})}

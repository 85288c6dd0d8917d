"""Decode steps: wall clock of the whole loop, from one token's arrival at the host to the next one's.

Every rung of the ladder (`engine/ladder.py`), and Hugging Face transformers in the same run where it is installed and
one rank runs. Prompts are random ids; the end token is switched off, so that every sequence gets all its tokens.
The command around it: `commands/bench/decode.py`.
"""
from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from statistics import mean, median

import torch

from ..engine import Engine
from ..engine.decode_graph import cannot_graph, graph_batch, rungs_of
from ..engine.ladder import LADDER
from .peer import decode_times, peer_model
from .stopwatch import microseconds, spread


def sweep(model, name: str, dtype: str, batches, prompt_lens, new_tokens: int, wanted=None,
          with_peer: bool = True) -> Iterator[tuple[dict, list[float]]]:
    """(row, microseconds of each of its steps), shape by shape, through every rung that this machine has.

    name, dtype  of the model, as rows name them
    wanted       names of rungs (default: all)
    """
    model.config, world = replace(model.config, eos_token_id=None), model.world
    ladder = LADDER[:1] if cannot_graph(model) else rungs_of(model)
    peer = peer_model(model.config, dtype, world) if with_peer else None
    of_all = {"copy_gb_per_s": copy_gb_per_s(world.device)}
    for batch in batches:
        for length in prompt_lens:
            case = (name, dtype, world.size, batch, length)
            for rung in ladder:
                own = not rung.clusters or graph_batch(batch) <= rung.clusters  # more rows take the rung below
                if own and (wanted is None or rung.name in wanted):
                    times = step_times(model, rung, batch, length, new_tokens)
                    sums = "slots" if rung.clusters and world.size > 1 else sum_name(model, batch)
                    yield row("tpgpt2", rung.name, sums, *case, times) | of_all, times
            if peer is not None:
                times = decode_times(peer, random_prompts(model.config.vocab_size, batch, length), new_tokens)
                yield row("transformers", "generate", "none", *case, times) | of_all, times


def step_times(model, rung, batch: int, prompt_len: int, new_tokens: int) -> list[float]:
    """Microseconds of each decode step of one `generate`, after one that warmed up."""
    engine = Engine(model, rung=rung)
    prompts = random_prompts(model.config.vocab_size, batch, prompt_len)
    engine.generate(prompts, 4)
    engine.seconds["decode"].clear()
    engine.generate(prompts, new_tokens)
    if rung.graph and engine.why_eager:
        raise RuntimeError(f"rung {rung.name}: {engine.why_eager}")
    engine.close()
    return [s * 1e6 for s in engine.seconds["decode"]]


def copy_gb_per_s(device: torch.device) -> float | None:
    """What the GPU's memory gives a large copy, bytes read and written: by it the chapter counts a step's floor."""
    if device.type != "cuda":
        return None
    a = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    us = [microseconds(lambda: b.copy_(a), device) for _ in range(12)]
    return round(2 * a.nbytes / median(us[2:]) / 1e3, 1)


def random_prompts(vocabulary: int, batch: int, length: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(vocabulary) for _ in range(length)] for _ in range(batch)]


def sum_name(model, tokens: int) -> str:
    """The algorithm that sums a forward's (tokens, D) tensors: none where no other rank is there."""
    if model.world.alone:
        return "none"
    x = model.wpe.weight[:1].expand(tokens, -1).contiguous()  # (1, D) -> (tokens, D)
    return next(algorithm.name for algorithm in model.world.all_reduces if algorithm.takes(x))


def row(engine: str, rung: str, sums: str, model: str, dtype: str, tp: int, batch: int, prompt_len: int,
        times: list[float]) -> dict:
    """A row of `decode`, as `recorded/results.py` wants it."""
    return {"engine": engine, "model": model.removeprefix("random:"), "dtype": dtype, "tp": tp, "sum": sums,
            "rung": rung, "batch": batch, "prompt_len": prompt_len, "new_tokens": len(times) + 1,
            **spread(times, "us_per_step"), "us_per_step_mean": round(mean(times), 3)}

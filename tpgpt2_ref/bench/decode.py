"""Measure decode: wall clock of a step of the whole loop, from one token's arrival at the host to the next one's.

  python -m tpgpt2_ref bench decode --model random:gpt2 --batch 1 8 64
  python -m tpgpt2_ref bench decode --model random:gpt2 --tp 2 --sum push --rung +pdl --record

Every rung of the ladder (`engine/ladder.py`), and Hugging Face transformers in the same run where it is installed and
one rank runs. Prompts are random ids; the end token is switched off, so that every sequence gets all its tokens.
"""
from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from statistics import median

from ..commands.arguments import add_imagine_argument, add_model_arguments, check_imagine, check_names, dtype, ranks
from ..errors import UserError
from ..recorded.results import BOOK_RESULTS, Run, machine_card, save
from ..weights import find_checkpoint

__all__ = ["HELP", "add_arguments", "check", "ranks", "run", "show"]
HELP = "decode steps: every rung of the ladder, beside Hugging Face transformers"


def add_arguments(parser):
    add_model_arguments(parser)
    parser.set_defaults(model="random:gpt2")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompt-len", type=int, nargs="+", default=[128], metavar="N")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--rung", nargs="+", default=None, help="rungs by name (default: all that this machine has)")
    add_imagine_argument(parser)
    parser.add_argument("--no-peer", action="store_true", help="leave out Hugging Face transformers")
    parser.add_argument("--record", nargs="?", const=str(BOOK_RESULTS), default=None, metavar="DIR",
                        help="save the run (default DIR: the book's results)")


def check(args):
    config, _ = find_checkpoint(args.model)
    check_names(args, config)
    check_imagine(args)
    if min(args.batch) < 1 or min(args.prompt_len) < 1 or args.new_tokens < 2:
        raise UserError("--batch and --prompt-len must be at least 1, --new-tokens at least 2")
    if max(args.prompt_len) + args.new_tokens > config.n_positions:
        raise UserError(f"--prompt-len {max(args.prompt_len)} and --new-tokens {args.new_tokens} make more than the "
                        f"model's {config.n_positions} positions")
    from ..engine.ladder import LADDER

    for name in args.rung or []:
        if name not in (known := [r.name for r in LADDER]):
            raise UserError(f"unknown rung {name!r}; known: {', '.join(known)}")


def run(args, world) -> dict:
    from ..engine.decode_graph import cannot_graph, is_hopper
    from ..engine.ladder import LADDER, rungs
    from ..weights import load_model

    world = world.imagine(args.imagine) if args.imagine else world
    model = load_model(args.model, world, args.plan, dtype(args), args.backend)
    model.config = replace(model.config, eos_token_id=None)
    why = cannot_graph(model)
    peer = None if args.no_peer or world.size > 1 else peer_model(model.config, dtype(args), world)
    ladder = LADDER[:1] if why else rungs(world.size, is_hopper(world.device))
    rows, samples, copy = [], [], copy_gb_per_s(world.device)
    result = {"bench": "decode", "machine": machine_card(), "rows": rows, "why_eager": why}
    for batch in args.batch:
        for length in args.prompt_len:
            for rung in ladder:
                if args.rung is None or rung.name in args.rung:
                    times = step_times(model, rung, batch, length, args.new_tokens)
                    sums = sum_name(model, batch, world)
                    rows.append(row("tpgpt2", rung.name, batch, length, args, world, sums, times, copy))
                    samples.append(times)
            if peer is not None:
                times = peer_times(peer, random_prompts(model.config.vocab_size, batch, length), args.new_tokens)
                rows.append(row("transformers", "generate", batch, length, args, world, "none", times, copy))
                samples.append(times)
        if args.record and world.rank == 0 and rows:  # after each batch: a run that is cut short leaves what it has
            result["saved"] = str(save(Run("decode", result["machine"], rows), args.record, samples))
    return result


def step_times(model, rung, batch: int, prompt_len: int, new_tokens: int) -> list[float]:
    """Microseconds of each decode step of one `generate`, after one that warmed up."""
    from ..engine import Engine

    engine = Engine(model, rung=rung)
    prompts = random_prompts(model.config.vocab_size, batch, prompt_len)
    engine.generate(prompts, 4)
    engine.seconds["decode"].clear()
    engine.generate(prompts, new_tokens)
    if rung.graph and engine.why_eager:
        raise RuntimeError(f"rung {rung.name}: {engine.why_eager}")
    engine.close()
    return [s * 1e6 for s in engine.seconds["decode"]]


def copy_gb_per_s(device) -> float | None:
    """What the GPU's memory gives a large copy, bytes read and written: by it the chapter counts a step's floor."""
    if device.type != "cuda":
        return None
    import torch

    a, times = torch.empty(1 << 30, dtype=torch.uint8, device=device), []
    b = torch.empty_like(a)
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        b.copy_(a)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(2 * a.nbytes / median(times[2:]) / 1e6, 1)


def random_prompts(vocabulary: int, batch: int, length: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(vocabulary) for _ in range(length)] for _ in range(batch)]


def peer_times(peer, prompts: list[list[int]], new_tokens: int) -> list[float]:
    """Microseconds of each of Hugging Face's decode steps on the same shapes."""
    import torch
    from transformers import StoppingCriteria

    ids = torch.tensor(prompts, device=peer.device)

    class Clock(StoppingCriteria):
        """Called after every token; stops nothing."""

        def __init__(self):
            self.times = []

        def __call__(self, input_ids, scores, **kwargs):
            if input_ids.is_cuda:
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    with without_cudnn_attention():
        for tokens in (4, new_tokens):
            clock = Clock()
            peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                          stopping_criteria=[clock], pad_token_id=0)
    return [(b - a) * 1e6 for a, b in pairwise(clock.times)]


@contextmanager
def without_cudnn_attention():
    """PyTorch prefers cuDNN's attention on Hopper, which builds a graph for each new length (its cudnn/MHA.cpp).
    That is most of a step's time whenever a text reaches a length for the first time (`transformers_cudnn.json`)."""
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def peer_model(config, dtype_name: str, world):
    """Hugging Face's GPT-2 of the same shape, with random weights; None if it isn't installed."""
    import torch

    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None

    peer = GPT2Config(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd,
                      n_positions=config.n_positions, vocab_size=config.vocab_size, n_inner=config.n_inner,
                      bos_token_id=None, eos_token_id=None)
    with world.device:
        return GPT2LMHeadModel(peer).to(getattr(torch, dtype_name)).eval()


def sum_name(model, batch: int, world) -> str:
    """The algorithm that sums a step's (batch, D) tensors: none where no other rank is there."""
    if world.alone:
        return "none"
    x = model.wpe.weight[:1].expand(batch, -1).contiguous()
    return next(algorithm.name for algorithm in world.all_reduces if algorithm.takes(x))


def row(engine: str, rung: str, batch: int, prompt_len: int, args, world, sums: str, times: list[float],
        copy: float | None) -> dict:
    ordered = sorted(times)
    at = {f"us_per_step_{name}": round(ordered[int(share * (len(ordered) - 1))], 2)
          for name, share in (("median", 0.5), ("p10", 0.1), ("p90", 0.9))}
    return {"engine": engine, "model": args.model.removeprefix("random:"), "dtype": dtype(args), "tp": world.size,
            "sum": sums, "rung": rung, "batch": batch, "prompt_len": prompt_len, "new_tokens": len(times) + 1,
            **at, "us_per_step_mean": round(sum(times) / len(times), 2), "copy_gb_per_s": copy}


def show(result: dict) -> str:
    lines = [f"{'engine':14}{'rung':12}{'tp':>3} {'sum':10}{'batch':>6}{'tokens':>8}{'us a step':>12}{'p10':>10}"
             f"{'p90':>10}"]
    for r in result["rows"]:
        lines.append(f"{r['engine']:14}{r['rung']:12}{r['tp']:>3} {r['sum']:10}{r['batch']:>6}{r['prompt_len']:>8}"
                     f"{r['us_per_step_median']:>12.1f}{r['us_per_step_p10']:>10.1f}{r['us_per_step_p90']:>10.1f}")
    if result["why_eager"]:
        lines.append(f"eager only: {result['why_eager']}")
    return "\n".join([*lines, *([f"saved {result['saved']}"] if "saved" in result else [])])

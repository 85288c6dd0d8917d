"""Measure prefill: whole prompts to the last positions' logits and their best tokens on the host.

  python -m tpgpt2_ref bench prefill --model random:gpt2 --batch 8 --prompt-len 1000

Wall clock of the engine's prefill, host work included, and the GPU's own time: the same work enqueued behind a
kernel that sleeps, so that the GPU never waits for the host. Rungs: gpt2.py ("eager"), and our kernels between
cuBLAS's products ("fused"). Hugging Face transformers in the same run where it is installed and one rank runs.
"""
from __future__ import annotations

import time

from ..commands.arguments import add_imagine_argument, add_model_arguments, check_imagine, check_names, dtype, ranks
from ..errors import UserError
from ..recorded.results import BOOK_RESULTS, Run, machine_card, save
from ..weights import find_checkpoint
from .decode import peer_model, random_prompts, sum_name

__all__ = ["HELP", "add_arguments", "check", "ranks", "run", "show"]
HELP = "prefill: wall clock and GPU time, beside Hugging Face transformers"
RUNGS = ("eager", "fused")
SLEEP_CYCLES = 100_000_000  # some 50 ms of a GPU, in which the host enqueues a whole prefill


def add_arguments(parser):
    add_model_arguments(parser)
    parser.set_defaults(model="random:gpt2")
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--prompt-len", type=int, nargs="+", default=[1000], metavar="N")
    parser.add_argument("--repeat", type=int, default=20, metavar="N")
    add_imagine_argument(parser)
    parser.add_argument("--no-peer", action="store_true", help="leave out Hugging Face transformers")
    parser.add_argument("--record", nargs="?", const=str(BOOK_RESULTS), default=None, metavar="DIR",
                        help="save the run (default DIR: the book's results)")


def check(args):
    config, _ = find_checkpoint(args.model)
    check_names(args, config)
    check_imagine(args)
    if args.repeat < 2:
        raise UserError(f"--repeat must be at least 2, not {args.repeat}: a spread comes out of it")
    if min(args.batch) < 1 or not 0 < min(args.prompt_len) <= max(args.prompt_len) <= config.n_positions:
        raise UserError(f"--batch must be at least 1, --prompt-len between 1 and {config.n_positions}")


def run(args, world) -> dict:
    from ..engine import Engine
    from ..engine.ladder import LADDER
    from ..weights import load_model

    world = world.imagine(args.imagine) if args.imagine else world
    model = load_model(args.model, world, args.plan, dtype(args), args.backend)
    peer = None if args.no_peer or world.size > 1 else peer_model(model.config, dtype(args), world)
    result = {"bench": "prefill", "machine": machine_card(), "rows": (rows := []), "why_eager": None}
    samples = []

    def measure(step, *case):
        wall, gpu = times(step, world.device, args.repeat)
        rows.append(row(*case, wall, gpu))
        samples.append(wall)

    for batch in args.batch:
        for length in args.prompt_len:
            for rung in RUNGS:
                engine = Engine(model, rung=LADDER[0] if rung == "eager" else None)
                if rung == "fused" and engine.why_eager:
                    result["why_eager"] = engine.why_eager
                    continue
                step = engine.prefill_call(random_prompts(model.config.vocab_size, batch, length))
                measure(step, "tpgpt2", rung, batch, length, args, world, sum_name(model, batch * length, world))
                if rung == "fused" and not engine.prefills.graphs:
                    raise RuntimeError("the fused prefill could not be captured in a CUDA graph")
                engine.close()
            if peer is not None:
                step = peer_step(peer, random_prompts(model.config.vocab_size, batch, length), world.device)
                measure(step, "transformers", "forward", batch, length, args, world, "none")
            if args.record and world.rank == 0:  # after each shape: a run that is cut short leaves what it has
                result["saved"] = str(save(Run("prefill", result["machine"], rows), args.record, samples))
    return result


def times(step, device, repeat: int) -> tuple[list[float], list[float] | None]:
    """Microseconds: (wall clock of `step` until its tokens are on the host, the GPU's own time or None)."""
    import torch

    for _ in range(3):
        step().tolist()
    wall = []
    for _ in range(repeat):
        start = time.perf_counter()
        step().tolist()
        wall.append((time.perf_counter() - start) * 1e6)
    if device.type != "cuda":
        return wall, None
    gpu = []
    for _ in range(repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(SLEEP_CYCLES)
        start.record()
        step()
        end.record()
        end.synchronize()
        gpu.append(start.elapsed_time(end) * 1e3)
    return wall, gpu


def peer_step(peer, prompts: list[list[int]], device):
    """Hugging Face's forward to the last position's best token."""
    import torch

    ids = torch.tensor(prompts, device=device)

    @torch.inference_mode()
    def step():
        return peer(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)

    return step


def row(engine: str, rung: str, batch: int, length: int, args, world, sums: str, wall, gpu) -> dict:
    from .collectives import spread

    return {"engine": engine, "model": args.model.removeprefix("random:"), "dtype": dtype(args), "tp": world.size,
            "sum": sums, "rung": rung, "batch": batch, "prompt_len": length,
            **{f"wall_{name}": us for name, us in spread(wall).items()},
            **({f"gpu_{name}": us for name, us in spread(gpu).items()} if gpu else {"gpu_us_median": None})}


def show(result: dict) -> str:
    lines = [f"{'engine':14}{'rung':10}{'tp':>3} {'sum':10}{'batch':>6}{'tokens':>8}{'wall us':>12}{'GPU us':>12}"]
    for r in result["rows"]:
        gpu = "-" if r["gpu_us_median"] is None else f"{r['gpu_us_median']:.1f}"
        lines.append(f"{r['engine']:14}{r['rung']:10}{r['tp']:>3} {r['sum']:10}{r['batch']:>6}{r['prompt_len']:>8}"
                     f"{r['wall_us_median']:>12.1f}{gpu:>12}")
    if result["why_eager"]:
        lines.append(f"eager only: {result['why_eager']}")
    return "\n".join([*lines, *([f"saved {result['saved']}"] if "saved" in result else [])])

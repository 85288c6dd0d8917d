"""Measure prefill: whole prompts to the last positions' logits and their best tokens on the host.

  python -m tpgpt2_ref bench prefill --model random:gpt2 --batch 8 --prompt-len 1000

Wall clock of the engine's prefill, host work included, and the GPU's own time: the same work enqueued behind a
kernel that sleeps, so that the GPU never waits for the host. Rungs: gpt2.py ("eager"), and our kernels between
cuBLAS's products ("fused"). Hugging Face transformers in the same run where it is installed and one rank runs.
"""
from __future__ import annotations

from ...errors import UserError
from ...recorded.machine import machine_card
from ...recorded.results import BOOK_RESULTS
from ...weights import find_checkpoint
from ..arguments import add_imagine_argument, add_model_arguments, check_imagine, check_names, dtype, ranks
from .rows import record, table

__all__ = ["HELP", "add_arguments", "check", "ranks", "run", "show"]
HELP = "prefill: wall clock and GPU time, beside Hugging Face transformers"


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
    args.checkpoint = find_checkpoint(args.model)
    config = args.checkpoint.config
    check_names(args, config)
    check_imagine(args)
    if args.repeat < 2:
        raise UserError(f"--repeat must be at least 2, not {args.repeat}: a spread comes out of it")
    if min(args.batch) < 1 or not 0 < min(args.prompt_len) <= max(args.prompt_len) <= config.n_positions:
        raise UserError(f"--batch must be at least 1, --prompt-len between 1 and {config.n_positions}")


def run(args, world) -> dict:
    from ...bench.prefill import sweep
    from ...engine.decode_graph import cannot_graph
    from ...weights import load_model

    world = world.imagine(args.imagine) if args.imagine else world
    model = load_model(args.checkpoint, world, args.plan, dtype(args), args.backend)
    result = {"bench": "prefill", "machine": machine_card(), "rows": [], "why_eager": cannot_graph(model)}
    record(result, args, world, sweep(model, args.model, dtype(args), args.batch, args.prompt_len, args.repeat,
                                      not args.no_peer))
    return result


def show(result: dict) -> str:
    return table(result, 10, {"wall us": "wall_us_median", "GPU us": "gpu_us_median"})

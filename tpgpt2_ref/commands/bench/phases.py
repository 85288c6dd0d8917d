"""Measure the cluster kernels from inside: when their blocks come to each place of the source.

  python -m tpgpt2_ref bench phases --model random:gpt2 --batch 1 --prompt-len 128
  python -m tpgpt2_ref bench phases --record

Nanoseconds since the first block's start, over the blocks: the first, the median and the last one there; medians of
many steps. Needs a GPU that the rung +clusters runs on (Hopper).
"""
from __future__ import annotations

from ...errors import UserError
from ..arguments import add_model_arguments, check_names, dtype, ranks
from . import rows

__all__ = ["HELP", "add_arguments", "check", "ranks", "run", "show"]
HELP = "cluster kernels: when their blocks come to each place of the source"


def add_arguments(parser):
    from ...recorded.results import BOOK_RESULTS

    add_model_arguments(parser)
    parser.set_defaults(model="random:gpt2")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-len", type=int, default=128, metavar="N", help="tokens in the cache")
    parser.add_argument("--repeat", type=int, default=50, metavar="N", help="steps")
    parser.add_argument("--record", nargs="?", const=str(BOOK_RESULTS), default=None, metavar="DIR",
                        help="save the run (default DIR: the book's results)")


def check(args):
    from ...kernels.clusters.shape import MOST_ROWS
    from ...weights import find_checkpoint

    args.checkpoint = find_checkpoint(args.model)
    check_names(args, config := args.checkpoint.config)
    if args.batch not in (1, 2, 4):
        raise UserError(f"--batch {args.batch}: the cluster kernels take 1, 2 or {MOST_ROWS} rows")
    if not 0 < args.prompt_len < config.n_positions:
        raise UserError(f"--prompt-len must be between 1 and {config.n_positions - 1}")
    if args.repeat < 1:
        raise UserError(f"--repeat must be at least 1, not {args.repeat}")


def run(args, world) -> dict:
    from ...bench.phases import sweep
    from ...engine.cluster_step import why_no_clusters
    from ...recorded.machine import machine_card
    from ...weights import load_model

    model = load_model(args.checkpoint, world, args.plan, dtype(args), args.backend)
    if why := why_no_clusters(model):
        raise UserError(f"no cluster kernels here: {why}")
    result = {"bench": "phases", "machine": machine_card(), "rows": []}
    rows.record(result, args, world, sweep(model, args.model, dtype(args), args.batch, args.prompt_len, args.repeat))
    return result


def show(result: dict) -> str:
    lines = [f"{'kernel':11}{'place':42}{'first ns':>10}{'median':>10}{'last':>10}"]
    lines += [f"{r['kernel']:11}{r['place']:42}{r['min_ns']:>10.0f}{r['median_ns']:>10.0f}{r['max_ns']:>10.0f}"
              for r in result["rows"]]
    lines.append(f"the clock's steps are {result['rows'][0]['clock_step_ns']} ns")
    return "\n".join([*lines, *([f"saved {result['saved']}"] if "saved" in result else [])])

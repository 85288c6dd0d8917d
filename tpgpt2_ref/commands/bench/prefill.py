"""Measure prefill: whole prompts to the last positions' logits and their best tokens on the host.

  python -m tpgpt2_ref bench prefill --model random:gpt2 --batch 8 --prompt-len 1000

Wall clock of the engine's prefill, host work included, and the GPU's own time: the same work enqueued behind a
kernel that sleeps, so that the GPU never waits for the host. Rungs: gpt2.py ("eager"), our kernels between cuBLAS's
products ("fused"), and the same in two halves that hide each other's sums ("halves", on several GPUs). Hugging Face
transformers in the same run where it is installed and one rank runs.
"""
from __future__ import annotations

from ...errors import UserError
from ..arguments import ranks
from . import rows

__all__ = ["HELP", "add_arguments", "check", "ranks", "run", "show"]
HELP = "prefill: wall clock and GPU time, beside Hugging Face transformers"


def add_arguments(parser):
    rows.add_arguments(parser, batch=[8], prompt_len=[1000])
    parser.add_argument("--repeat", type=int, default=20, metavar="N")


def check(args):
    config = rows.check(args)
    if args.repeat < 2:
        raise UserError(f"--repeat must be at least 2, not {args.repeat}: a spread comes out of it")
    if min(args.batch) < 1 or not 0 < min(args.prompt_len) <= max(args.prompt_len) <= config.n_positions:
        raise UserError(f"--batch must be at least 1, --prompt-len between 1 and {config.n_positions}")


def run(args, world) -> dict:
    from ...bench.prefill import sweep

    return rows.run("prefill", sweep, args, world, args.repeat)


def show(result: dict) -> str:
    return rows.table(result, 10, {"wall us": "wall_us_median", "GPU us": "gpu_us_median"})

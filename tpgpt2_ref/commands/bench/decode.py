"""Measure decode: wall clock of a step of the whole loop, from one token's arrival at the host to the next one's.

  python -m tpgpt2_ref bench decode --model random:gpt2 --batch 1 8 64
  python -m tpgpt2_ref bench decode --model random:gpt2 --tp 2 --sum push --rung +pdl --record

Every rung of the ladder (`engine/ladder.py`), and Hugging Face transformers in the same run where it is installed and
one rank runs. Prompts are random ids; the end token is switched off, so that every sequence gets all its tokens.
"""
from __future__ import annotations

from ...errors import UserError
from ..arguments import ranks
from . import rows

__all__ = ["HELP", "add_arguments", "check", "ranks", "run", "show"]
HELP = "decode steps: every rung of the ladder, beside Hugging Face transformers"


def add_arguments(parser):
    rows.add_arguments(parser, batch=[1, 8, 64], prompt_len=[128])
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--rung", nargs="+", default=None, help="rungs by name (default: all that this machine has)")


def check(args):
    config = rows.check(args)
    if min(args.batch) < 1 or min(args.prompt_len) < 1 or args.new_tokens < 2:
        raise UserError("--batch and --prompt-len must be at least 1, --new-tokens at least 2")
    if max(args.prompt_len) + args.new_tokens > config.n_positions:
        raise UserError(f"--prompt-len {max(args.prompt_len)} and --new-tokens {args.new_tokens} make more than the "
                        f"model's {config.n_positions} positions")
    from ...engine.ladder import LADDER

    for name in args.rung or []:
        if name not in (known := [r.name for r in LADDER]):
            raise UserError(f"unknown rung {name!r}; known: {', '.join(known)}")


def run(args, world) -> dict:
    from ...bench.decode import sweep

    return rows.run("decode", sweep, args, world, args.new_tokens, args.rung)


def show(result: dict) -> str:
    return rows.table(result, 12, {"us a step": "us_per_step_median", "p10": "us_per_step_p10",
                                   "p90": "us_per_step_p90"})

"""Diagram 5 under a stopwatch: one attention through every kernel that this machine has.

  python -m tpgpt2_ref bench attention
  python -m tpgpt2_ref bench attention --backends TRITON_ATTN,FLASH_ATTN_3 --phase decode --json
  python -m tpgpt2_ref bench attention --record

The column "direct" is our time divided by that of the kernel's own package, called directly on the same tensors.
What is measured, and how: `bench/attention.py`.
"""
from __future__ import annotations

import json
import sys

from ...attention.matrix import MATRIX
from ...config import DTYPES
from ...errors import UserError
from ...recorded.machine import machine_card
from ...recorded.results import BOOK_RESULTS, Run, save

HELP = "time every attention kernel of this machine, prefill and decode"


def add_arguments(parser):
    parser.add_argument("--backends", metavar="NAME,...", help=f"of {', '.join(MATRIX)} (default: all that run here)")
    parser.add_argument("--phase", choices=("prefill", "decode"), help="default: both")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16 and bfloat16, on a CPU float32")
    parser.add_argument("--samples", type=int, default=30, help="samples a row (30)")
    parser.add_argument("--record", nargs="?", const=str(BOOK_RESULTS), metavar="FOLDER",
                        help="keep the rows in FOLDER/<machine>/attention.json (default: the book's results)")


def ranks(args) -> None:
    """One process: attention has no collective."""
    return None


def check(args):
    names = args.backends.split(",") if args.backends else list(MATRIX)
    if unknown := [n for n in names if n not in MATRIX]:
        raise UserError(f"unknown backend {', '.join(unknown)}; known: {', '.join(MATRIX)}")
    if args.samples < 3:
        raise UserError("--samples must be at least 3: a median and a spread come out of them")
    args.names = names


def run(args, world) -> dict:
    from ...bench.attention import missing, sweep

    out = {"bench": "attention", "machine": machine_card(), "missing": missing(args.names)}
    kept = []
    for row, samples in sweep(args.names, args.phase, args.dtype, args.samples):
        kept.append((row, samples))
        if args.json:
            print(json.dumps({"row": row, "us": samples}), file=sys.stderr, flush=True)
    if not kept:
        raise UserError("nothing to measure: none of these backends runs here with that dtype")
    out["rows"] = [row for row, _ in kept]
    if args.record:
        path = save(Run("attention", out["machine"], out["rows"]), args.record, [s for _, s in kept])
        out["recorded"] = str(path)
    return out


def show(result) -> str:
    lines = [f"{'backend':16}{'phase':9}{'batch':>5}{'tokens':>7}{'head':>5}  {'dtype':9}{'graph':>6}{'us':>10}"
             f"{'p10':>10}{'p90':>10}{'direct':>8}{'':>15}{'error':>10}"]
    for r in result["rows"]:
        rate = f"{r['tflop_per_s']:.1f} TFLOP/s" if "tflop_per_s" in r else f"{r['gb_per_s']:.0f} GB/s"
        ratio = f"{r['us_median'] / r['direct_us_median']:.2f}x" if "direct_us_median" in r else ""
        lines.append(f"{r['backend']:16}{r['phase']:9}{r['batch']:>5}{r['seq_len']:>7}{r['head_size']:>5}  "
                     f"{r['dtype']:9}{'yes' if r['graph'] else 'no':>6}{r['us_median']:>10.1f}{r['us_p10']:>10.1f}"
                     f"{r['us_p90']:>10.1f}{ratio:>8}{rate:>15}{r['error_vs_fp64']:>10.1e}")
    lines += [f"{name} does not run here: {reason}" for name, reason in result["missing"].items()]
    return "\n".join([*lines, *([f"kept in {result['recorded']}"] if "recorded" in result else [])])

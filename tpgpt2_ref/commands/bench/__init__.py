"""Measure this machine: attention kernels, collectives, decode and prefill. Medians of many runs, with the spread.

  python -m tpgpt2_ref bench attention
  python -m tpgpt2_ref bench collectives --tp 2
  python -m tpgpt2_ref bench decode --model random:gpt2 --tp 2 --batch 1 8 64
"""
from __future__ import annotations

from importlib import import_module

HELP = "measure attention, collectives, decode, its kernels' phases or prefill on this machine"
BENCHES = ("attention", "collectives", "decode", "phases", "prefill")


def add_arguments(parser):
    sub = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name in BENCHES:
        bench = import_module(f".{name}", __package__)
        p = sub.add_parser(name, help=bench.HELP, description=bench.__doc__, formatter_class=parser.formatter_class)
        bench.add_arguments(p)
        p.set_defaults(bench=bench)


def ranks(args) -> int | None:
    return args.bench.ranks(args)


def check(args):
    args.bench.check(args)


def run(args, world):
    return args.bench.run(args, world)


def show(result) -> str:
    return import_module(f".{result['bench']}", __package__).show(result)

"""Diagram 3 under a stopwatch: every collective, every all-reduce algorithm, from 256 bytes to a gigabyte.

  python -m tpgpt2_ref bench collectives --tp 2
  python -m tpgpt2_ref bench collectives --sizes 1K,1M --ops all_reduce --json
  python -m tpgpt2_ref bench collectives --link all --record      every position of Diagram 6's dial, 2, 4, 8 ranks

On a host that other programs use, a run of another hour tells more than a longer one: `--add` pools the samples.
What is measured, and how: `bench/collectives.py`.
"""
from __future__ import annotations

import json
import re
import sys

from ...bench import dial
from ...config import DTYPES
from ...errors import UserError
from ...parallel.launch import gpu_count
from ...parallel.torchrun import torchrun_env
from ...recorded import results
from ...recorded.machine import machine_card
from ...recorded.samples import before, pool
from ...trace import OPS

HELP = "time all_reduce, all_gather, reduce_scatter and broadcast by size, path and link"


def add_arguments(parser):
    parser.add_argument("--tp", type=int, default=None, metavar="N", help="ranks (default: the GPUs, at least 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None, help="default: cuda if there are N GPUs")
    parser.add_argument("--sizes", type=sizes, default=None, metavar="256,1K,…,1G", help="bytes of one rank's input "
                        "(default: every power of two from 256 to 1G, on CPUs to 16M)")
    parser.add_argument("--ops", type=ops, default=OPS, metavar="OP,…", help=f"default: {','.join(OPS)}")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="default: bfloat16 on GPUs, float32 on CPUs")
    parser.add_argument("--link", choices=(*dial.DIAL, "all"), default="as is", help="make the ranks talk over "
                        "another link than the machine's own; all: one after the other")
    parser.add_argument("--samples", type=int, default=30, metavar="N", help="samples a row (default: 30)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="go through all sizes so often, a part of "
                        "the samples each time: a host that is slow for a second then spoils no size (default: 1)")
    parser.add_argument("--record", nargs="?", const=str(results.BOOK_RESULTS), metavar="FOLDER",
                        help="keep the rows in FOLDER/<machine>/collectives.json (default: the book's results)")
    parser.add_argument("--add", action="store_true", help="with --record: add the samples to those that the file has "
                        "already, row by row, instead of writing it anew")


def ranks(args) -> int | None:
    group = torchrun_env()
    if group is None and args.link in ("all", "two hosts"):
        return None  # each link starts ranks of its own
    if args.tp is None:
        args.tp = group.size if group else max(2, gpu_count())
    if args.link != "as is":
        args.device = dial.DIAL[args.link].device
    elif args.device is None:
        args.device = "cuda" if gpu_count() >= args.tp else "cpu"
    return args.tp


def check(args):
    if args.link == "two hosts" and args.tp not in (None, 2):
        raise UserError("--link \"two hosts\" joins 2 ranks: leave --tp out")
    if args.tp is not None and args.tp < 2:
        raise UserError("a collective needs at least 2 ranks: give --tp 2 or more")
    if args.samples < 3:
        raise UserError("--samples must be at least 3: a median and a spread come out of them")
    if not 1 <= args.rounds <= args.samples:
        raise UserError(f"--rounds must be between 1 and the samples, {args.samples}, not {args.rounds}")
    if args.add and not args.record:
        raise UserError("--add adds to a recorded file: say --record too")
    if args.link != "all":
        dial.turn_dial(args.link)  # before any rank of this process or its children has started NCCL


def run(args, world) -> dict:
    from ...bench.collectives import door_overhead, sweep

    out = {"bench": "collectives", "machine": machine_card()}
    known = before(args.record, out["machine"]) if args.add else None  # what can't be added to is said at once
    if world is None:
        kept = [row for link in _links(args.link) for size in _worlds(args.tp, link)
                for row in dial.sweep(link, size, _options(args))]
    else:
        kept = []
        for row, samples in sweep(world, args.ops, args.sizes, args.dtype, args.link, args.samples,
                                  rounds=args.rounds):
            kept.append((row, samples))
            if args.json and world.rank == 0:
                print(json.dumps({"row": row, "us": samples}), file=sys.stderr, flush=True)
        if args.link == "as is":
            out["door"] = door_overhead(world)
    out["rows"] = [row for row, _ in kept]
    if args.record and (world is None or world.rank == 0):
        run, samples = results.Run("collectives", out["machine"], out["rows"]), [samples for _, samples in kept]
        if known:
            run, samples = pool([known, (results.stamped(run), samples)])
        out["recorded"] = str(results.save(run, args.record, samples))
    return out


def show(result) -> str:
    lines = [f"{'op':15}{'path':20}{'graph':>6}{'bytes':>12}{'us':>11}{'p10':>11}{'p90':>11}{'busbw GB/s':>12}"]
    lines += [f"{r['op']:15}{r['path']:20}{'yes' if r['graph'] else 'no':>6}{r['bytes']:>12,}{r['us_median']:>11.1f}"
              f"{r['us_p10']:>11.1f}{r['us_p90']:>11.1f}{r['busbw_gb_per_s']:>12.3f}" for r in result["rows"]]
    if "door" in result:
        door = result["door"]
        lines.append(f"our door costs {door['overhead_us']:.2f} us more than a bare call of {door['bytes']} bytes")
    return "\n".join([*lines, *([f"kept in {result['recorded']}"] if "recorded" in result else [])])


def sizes(text: str) -> list[int]:
    """"256,1K,16M,1G" -> bytes."""
    found = [re.fullmatch(r"(\d+)([KMG]?)B?", part.strip(), re.IGNORECASE) for part in text.split(",")]
    if not all(found):
        raise UserError(f"--sizes {text}: give bytes such as 256,1K,16M,1G")
    out = [int(m[1]) * 1024 ** "KMG".find(m[2].upper()) * 1024 if m[2] else int(m[1]) for m in found]
    if min(out) < 4 or max(out) > 2**32:
        raise UserError(f"--sizes {text}: sizes go from 4 bytes to 4G")
    return out


def ops(text: str) -> tuple[str, ...]:
    if unknown := set(text.split(",")) - set(OPS):
        raise UserError(f"unknown collective {min(unknown)!r}; known: {', '.join(OPS)}")
    return tuple(text.split(","))


def _links(link: str) -> list[str]:
    """The positions of the dial to go through, saying which ones this machine has to leave out."""
    if link != "all":
        return [link]
    for name, reason in (able := dial.positions()).items():
        if reason:
            print(f"left out: {name}: {reason}", file=sys.stderr)
    return [name for name, reason in able.items() if reason is None]


def _worlds(tp: int | None, link: str) -> list[int]:
    """How many ranks to measure a link with: as asked, or 2, 4, 8 as far as the GPUs go; the cable joins two hosts."""
    most = 2 if link == "two hosts" else max(2, gpu_count())
    return [tp] if tp else [n for n in (2, 4, 8) if n <= most]


def _options(args) -> tuple[str, ...]:
    """The arguments that each link's own command gets."""
    out = ["--ops", ",".join(args.ops), "--samples", str(args.samples), "--rounds", str(args.rounds)]
    out += ["--sizes", ",".join(map(str, args.sizes))] if args.sizes else []
    return tuple(out + (["--dtype", args.dtype] if args.dtype else []))

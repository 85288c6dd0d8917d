"""Diagram 3 under a stopwatch: every collective, every all-reduce algorithm, from 256 bytes to a gigabyte.

  python -m tpgpt2_ref bench collectives --tp 2
  python -m tpgpt2_ref bench collectives --sizes 1K,1M --ops all_reduce --json
  python -m tpgpt2_ref bench collectives --link all --record      every position of Diagram 6's dial, 2, 4, 8 ranks

A row's `bytes` are one rank's input. `algbw` and `busbw` are those of NVIDIA's nccl-tests (PERFORMANCE.md), whose
size is the whole result of an all-gather:

    algbw = size / time        busbw = algbw * 2(n-1)/n   all_reduce
                                       algbw * (n-1)/n    all_gather, reduce_scatter
                                       algbw              broadcast

One sample is the mean of some calls in a row, on the slowest rank; a row holds the samples' median, p10 and p90.
On a host that other programs use, a run of another hour tells more than a longer one: `--add` pools the samples.
`bare nccl` and `bare gloo` are torch.distributed's own calls, timed in turn with ours.
"""
from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from statistics import median

import torch

from ..config import DTYPES
from ..cost.collectives import calls_in_a_row
from ..errors import RankError, UserError
from ..parallel.bare import bare
from ..parallel.collectives import all_gather, all_reduce, barrier, broadcast, gather_objects, reduce_scatter
from ..parallel.launch import gpu_count
from ..parallel.torchrun import torchrun_env
from ..recorded import results
from ..recorded.samples import bandwidth, before, pool, spread
from . import dial as links

HELP = "time all_reduce, all_gather, reduce_scatter and broadcast by size, path and link"
OPS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
SMALLEST, LARGEST = 256, {"cuda": 2**30, "cpu": 2**24}
FEWEST_SAMPLES, BUDGET_US = 5, 1e6  # a slow link gets fewer samples, so that a gigabyte ends in seconds
DOOR_BYTES = 1536  # one GPT-2 token in bf16: where an overhead would hurt most


def add_arguments(parser):
    parser.add_argument("--tp", type=int, default=None, metavar="N", help="ranks (default: the GPUs, at least 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None, help="default: cuda if there are N GPUs")
    parser.add_argument("--sizes", type=sizes, default=None, metavar="256,1K,…,1G", help="bytes of one rank's input "
                        "(default: every power of two from 256 to 1G, on CPUs to 16M)")
    parser.add_argument("--ops", type=ops, default=OPS, metavar="OP,…", help=f"default: {','.join(OPS)}")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="default: bfloat16 on GPUs, float32 on CPUs")
    parser.add_argument("--link", choices=(*links.DIAL, "all"), default="as is", help="make the ranks talk over "
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
        args.device = links.DIAL[args.link].device
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
        links.turn_dial(args.link)  # before any rank of this process or its children has started NCCL


def run(args, world) -> dict:
    out = {"bench": "collectives", "machine": results.machine_card()}
    known = before(args.record, out["machine"]) if args.add else None  # what can't be added to is said at once
    if world is None:
        kept = [row for link in _links(args.link) for size in _worlds(args.tp, link)
                for row in links.sweep(link, size, _options(args))]
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


def sweep(world, ops=OPS, sizes=None, dtype=None, link="as is", samples=30, with_bare=True,
          rounds=1) -> Iterator[tuple[dict, list[float]]]:
    """(row, its samples in microseconds), one after the other, the same on every rank. All ranks must iterate.

    rounds  how often to go through all sizes, for a part of the samples each time; rows come in the last one
    """
    cuda = world.device.type == "cuda"
    dtype = dtype or ("bfloat16" if cuda else "float32")
    path_here, link_in_words = links.DIAL[link].path, links.describe(link, world.device.type)
    # the dial turns NCCL alone: our own algorithms would still take the GPUs' direct link
    algorithms = [algorithm for algorithm in world.all_reduces if link == "as is" or algorithm.name == world.backend]
    kept = defaultdict(list)
    for left, op, nbytes in product(reversed(range(rounds)), ops,
                                    sizes or powers_of_two(SMALLEST, LARGEST[world.device.type])):
        count = max(nbytes // getattr(torch, dtype).itemsize, world.size)
        if op == "reduce_scatter":
            count -= count % world.size  # every rank keeps an equal part
        x = torch.empty(count, dtype=getattr(torch, dtype), device=world.device)
        for graph in (False, True) if cuda else (False,):
            paths = calls(op, x, world, algorithms, with_bare)
            for path, us in timed(paths, world, x, -(-samples // rounds), graph).items():
                (us_here := kept[op, nbytes, graph, path]).extend(us)
                if not left:
                    yield {"op": op, "path": path_here(path), "world": world.size, "bytes": x.nbytes, "dtype": dtype,
                           "graph": graph, "calls": calls_in_a_row(x.nbytes, cuda), **spread(us_here),
                           **bandwidth(op, x.nbytes, median(us_here), world.size), "link": link_in_words}, us_here


def calls(op: str, x, world, algorithms, with_bare: bool = True) -> dict:
    """{path: a call without arguments}, checked to give the right answer: every algorithm there is to run `op` on x."""
    if op == "all_reduce":
        paths = {a.name: (lambda a=a: a(x)) for a in algorithms if a.can(x)}
    else:
        door = {"all_gather": all_gather, "reduce_scatter": reduce_scatter, "broadcast": broadcast}[op]
        paths = {world.backend: lambda: door(x, world)}
        if op == "all_gather":
            able = [algorithm for algorithm in algorithms if hasattr(algorithm, "gather") and algorithm.can(x)]
            paths |= {algorithm.name: (lambda algorithm=algorithm: algorithm.gather(x)) for algorithm in able}
    for path, call in paths.items():
        x.fill_(world.rank + 1)
        got = call().flatten()[[0, -1]].tolist()  # the first and the last value
        total = world.size * (world.size + 1) / 2
        want = {"all_gather": [1, world.size], "broadcast": [1, 1]}.get(op, [total, total])
        if got != want:
            raise RankError(f"{op} through {path} of {x.nbytes} bytes gave {got}, not {want}")
    return {**paths, **({f"bare {world.backend}": bare(op, x, world)} if with_bare else {})}


def timed(paths: dict, world, x: torch.Tensor, samples: int, graph: bool) -> dict[str, list[float]]:
    """Microseconds a call on x, up to `samples` of them for each path, taken in turn, each of the slowest rank."""
    # many in a row: the ranks don't start one at the same instant, and the first call waits for the later rank
    calls = calls_in_a_row(x.nbytes, world.device.type == "cuda")
    noise = torch.randn_like(x)
    runs = {path: Captured(call, calls) if graph else (lambda call=call: [call() for _ in range(calls)])
            for path, call in paths.items()}

    def once(run) -> float:
        x.copy_(noise)  # a sum's result may lie in x, and sums of sums of sums grow without end
        barrier(world)
        return stopwatch(run, world.device) / calls

    warm = max(min(once(run), once(run), once(run)) for run in runs.values())
    slowest = max(gather_objects(warm, world)) * calls
    samples = min(samples, max(FEWEST_SAMPLES, int(BUDGET_US / slowest)))
    mine = {path: [] for path in paths}
    for _ in range(samples):
        for path, run in runs.items():
            mine[path].append(once(run))
    by_rank = gather_objects(mine, world)
    return {path: [max(rank[path][i] for rank in by_rank) for i in range(samples)] for path in paths}


class Captured:
    """Some calls in a row as one CUDA graph."""

    def __init__(self, call, calls: int):
        call()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for _ in range(calls):
                call()

    def __call__(self):
        self.graph.replay()


def stopwatch(run, device) -> float:
    """Microseconds of one run: between two CUDA events, or on the host's clock."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e6


def door_overhead(world, repeats: int = 100) -> dict:
    """What `all_reduce` of collectives.py costs the host beyond the bare call: medians of calls taken in turn."""
    x = torch.zeros(DOOR_BYTES // 4, device=world.device)
    theirs = bare("all_reduce", x, world)
    sums = world.all_reduces
    world.all_reduces = sums[-1:]  # the group's own algorithm: the same work behind both
    times = {"door": [], "bare": []}
    for _ in range(repeats):
        for name, call in (("door", lambda: all_reduce(x, world)), ("bare", theirs)):
            barrier(world)
            start = time.perf_counter()
            for _ in range(10):
                call()
            times[name].append((time.perf_counter() - start) * 1e5)
    world.all_reduces = sums
    overhead = median(door - bare for door, bare in zip(times["door"], times["bare"], strict=True))
    return {"bytes": DOOR_BYTES, **{f"{name}_us": median(t) for name, t in times.items()}, "overhead_us": overhead}


def powers_of_two(first: int, last: int) -> list[int]:
    return [first << i for i in range((last // first).bit_length())]


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
    for name, reason in (able := links.positions()).items():
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

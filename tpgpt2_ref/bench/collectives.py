"""Diagram 3 under a stopwatch: every collective, every all-reduce algorithm, from 256 bytes to a gigabyte.

A row's `bytes` are one rank's input. `algbw` and `busbw` are those of NVIDIA's nccl-tests (PERFORMANCE.md), whose
size is the whole result of an all-gather:

    algbw = size / time        busbw = algbw * 2(n-1)/n   all_reduce
                                       algbw * (n-1)/n    all_gather, reduce_scatter
                                       algbw              broadcast

One sample is the mean of some calls in a row, on the slowest rank; a row holds the samples' median, p10 and p90.
`bare nccl` and `bare gloo` are torch.distributed's own calls, timed in turn with ours. The command around it:
`commands/bench/collectives.py`.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from statistics import median

import torch

from ..attention.platform import this_machine
from ..cost.collectives import calls_in_a_row
from ..errors import RankError
from ..parallel.bare import bare
from ..parallel.collectives import all_gather, all_reduce, barrier, broadcast, gather_objects, reduce_scatter
from ..parallel.watched import unwatched
from ..recorded.samples import bandwidth
from ..trace import OPS
from . import dial
from .stopwatch import captured, host_microseconds, microseconds, spread

SMALLEST, LARGEST = 256, {"cuda": 2**30, "cpu": 2**24}
FEWEST_SAMPLES, BUDGET_US = 5, 1e6  # a slow link gets fewer samples, so that a gigabyte ends in seconds
DOOR_BYTES = 1536  # one GPT-2 token in bf16: where an overhead would hurt most


def sweep(world, ops=OPS, sizes=None, dtype=None, link="as is", samples=30, with_bare=True,
          rounds=1) -> Iterator[tuple[dict, list[float]]]:
    """(row, its samples in microseconds), one after the other, the same on every rank. All ranks must iterate.

    rounds  how often to go through all sizes, for a part of the samples each time; rows come in the last one
    """
    cuda = world.device.type == "cuda"
    dtype = dtype or this_machine(world.device.type).default_dtype
    path_here, link_in_words = dial.DIAL[link].path, dial.describe(link, world.device.type)
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
            able = [algorithm for algorithm in algorithms if algorithm.gathers and algorithm.can(x)]
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
    with unwatched(world):
        return _timed(paths, world, x, samples, graph)


def _timed(paths: dict, world, x: torch.Tensor, samples: int, graph: bool) -> dict[str, list[float]]:
    # many in a row: the ranks don't start one at the same instant, and the first call waits for the later rank
    calls = calls_in_a_row(x.nbytes, world.device.type == "cuda")
    noise = torch.randn_like(x)
    runs = {path: captured(call, calls) if graph else (lambda call=call: [call() for _ in range(calls)])
            for path, call in paths.items()}

    def once(run) -> float:
        x.copy_(noise)  # a sum's result may lie in x, and sums of sums of sums grow without end
        barrier(world)
        return microseconds(run, world.device) / calls

    warm = max(min(once(run), once(run), once(run)) for run in runs.values())
    slowest = max(gather_objects(warm, world)) * calls
    samples = min(samples, max(FEWEST_SAMPLES, int(BUDGET_US / slowest)))
    mine = {path: [] for path in paths}
    for _ in range(samples):
        for path, run in runs.items():
            mine[path].append(once(run))
    by_rank = gather_objects(mine, world)
    return {path: [max(rank[path][i] for rank in by_rank) for i in range(samples)] for path in paths}


def door_overhead(world, repeats: int = 100) -> dict:
    """What `all_reduce` of collectives.py costs the host beyond the bare call: medians of calls taken in turn."""
    with unwatched(world):
        return _door_overhead(world, repeats)


def _door_overhead(world, repeats: int) -> dict:
    x = torch.zeros(DOOR_BYTES // 4, device=world.device)
    theirs = bare("all_reduce", x, world)
    sums = world.all_reduces
    world.all_reduces = sums[-1:]  # the group's own algorithm: the same work behind both
    times = {"door": [], "bare": []}
    for _ in range(repeats):
        for name, ten_calls in (("door", lambda: [all_reduce(x, world) for _ in range(10)]),
                                ("bare", lambda: [theirs() for _ in range(10)])):
            barrier(world)
            times[name].append(host_microseconds(ten_calls) / 10)
    world.all_reduces = sums
    overhead = median(door - bare for door, bare in zip(times["door"], times["bare"], strict=True))
    return {"bytes": DOOR_BYTES, **{f"{name}_us": median(t) for name, t in times.items()}, "overhead_us": overhead}


def powers_of_two(first: int, last: int) -> list[int]:
    return [first << i for i in range((last // first).bit_length())]

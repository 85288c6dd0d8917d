"""Diagram 5 under a stopwatch: one attention through every kernel that this machine has.

  python -m tpgpt2_ref bench attention
  python -m tpgpt2_ref bench attention --backends TRITON_ATTN,FLASH_ATTN_3 --phase decode --json
  python -m tpgpt2_ref bench attention --record

A prefill is counted in TFLOP/s, since its arithmetic takes the time: 2 products of 2 * d operations for every pair
of a query and a key that it sees. A decode step is counted in GB/s, since reading the keys and values takes the time.
One sample is the mean of one call a layer over 12 layers, each with a cache of its own, so that a cache is no faster
than in a model; on a GPU they are one CUDA graph where the kernel allows. What a kernel computes once a step (`build`)
is left out. The error is the largest difference from fp64, relative above 1. FlexAttention compiles each prefill.
Where a kernel's own package can be called directly (`attention_direct`), `direct_us_median` is the time of that on the
same tensors, its samples taken in turn with ours; the column "direct" is ours divided by it.
"""
from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median, quantiles

import torch

from ..attention.matrix import MATRIX
from ..attention.selector import get_attn_backend
from ..config import DTYPES
from ..errors import UserError
from ..recorded import results
from .attention_case import Case, largest_error, make_case
from .attention_direct import direct

HELP = "time every attention kernel of this machine, prefill and decode"
LAYERS = 12
HEADS = 12
SHAPES = {  # device: (phase, batch, sequence length, head size, dtype)
    "cuda": [("prefill", b, n, 64, "float16") for b, n in ((1, 128), (1, 1024), (8, 128), (8, 512), (8, 1024))]
    + [("decode", b, n, 64, "float16") for b, n in ((1, 128), (1, 1024), (8, 128), (8, 1024), (64, 1024))]
    + [(phase, 8, 1024, d, "float16") for phase in ("prefill", "decode") for d in (32, 96, 128, 256)]
    + [(phase, 8, 1024, 64, "bfloat16") for phase in ("prefill", "decode")],
    "cpu": [("prefill", b, n, 64, "float32") for b, n in ((1, 128), (1, 512), (4, 128))]
    + [("decode", b, n, 64, "float32") for b, n in ((1, 128), (4, 128), (4, 512))],
}


def add_arguments(parser):
    parser.add_argument("--backends", metavar="NAME,...", help=f"of {', '.join(MATRIX)} (default: all that run here)")
    parser.add_argument("--phase", choices=("prefill", "decode"), help="default: both")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16 and bfloat16, on a CPU float32")
    parser.add_argument("--samples", type=int, default=30, help="samples a row (30)")
    parser.add_argument("--record", nargs="?", const=str(results.BOOK_RESULTS), metavar="FOLDER",
                        help="keep the rows in FOLDER/<machine>/attention.json (default: the book's results)")


def check(args):
    names = args.backends.split(",") if args.backends else list(MATRIX)
    if unknown := [n for n in names if n not in MATRIX]:
        raise UserError(f"unknown backend {', '.join(unknown)}; known: {', '.join(MATRIX)}")
    if args.samples < 3:
        raise UserError("--samples must be at least 3: a median and a spread come out of them")
    args.names = names


def run(args, world) -> dict:
    out = {"bench": "attention", "machine": results.machine_card(), "missing": missing(args.names)}
    kept = []
    for row, samples in sweep(args.names, args.phase, args.dtype, args.samples):
        kept.append((row, samples))
        if args.json:
            print(json.dumps({"row": row, "us": samples}), file=sys.stderr, flush=True)
    if not kept:
        raise UserError("nothing to measure: none of these backends runs here with that dtype")
    out["rows"] = [row for row, _ in kept]
    if args.record:
        path = results.save(results.Run("attention", out["machine"], out["rows"]), args.record, [s for _, s in kept])
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


def missing(names=tuple(MATRIX)) -> dict[str, str]:
    """{backend: why it doesn't run GPT-2's attention on this machine}."""
    dtype, out = SHAPES[device()][0][-1], {}
    for name in names:
        try:
            get_attn_backend(HEADS, 64, dtype, force=name)
        except UserError as e:
            out[name] = str(e).partition(f"{name}: ")[2]
    return out


def sweep(names=tuple(MATRIX), phase=None, dtype=None, samples=30, shapes=None) -> Iterator[tuple[dict, list[float]]]:
    """(row, its samples in microseconds), shape by shape, through every named backend that takes the shape here."""
    for shape in shapes or SHAPES[device()]:
        kind, batch, seq_len, head_size, in_dtype = shape
        if phase not in (None, kind) or dtype not in (None, in_dtype):
            continue
        new, cached = (seq_len, 0) if kind == "prefill" else (1, seq_len - 1)
        layer = (HEADS, head_size, getattr(torch, in_dtype))
        cases = [make_case([new] * batch, [cached] * batch, *layer, device(), seed=i)
                 for i in range(LAYERS if device() == "cuda" else 1)]
        wanted = cases[0].reference()
        for name in names:
            try:
                backend = get_attn_backend(*layer, force=name).bind()(*layer)
            except UserError:  # `missing` says why
                continue
            if kind == "prefill":
                torch.compiler.reset()  # or FlexAttention's kernel would depend on the shapes before
            error = largest_error(cases[0].run(backend), wanted)
            us, direct_us, graph = timed(backend, cases, samples)
            p10, *_, p90 = quantiles(us, n=10, method="inclusive")  # never past the samples
            row = {"backend": name, "kernel_package": backend.load().__name__, "phase": kind, "batch": batch,
                   "seq_len": seq_len, "heads": HEADS, "head_size": head_size, "dtype": in_dtype, "graph": graph,
                   "us_median": median(us), "us_p10": p10, "us_p90": p90, **rate(cases[0], median(us)),
                   **({"direct_us_median": median(direct_us)} if direct_us else {}), "error_vs_fp64": error}
            yield row, us


def rate(case: Case, us: float) -> dict[str, float]:
    heads, d = case.shape
    if case.meta.is_decode:
        read = int(case.meta.seq_lens.sum()) * 2 * heads * d * case.kv_cache.element_size()
        return {"gb_per_s": read / us / 1e3}
    lens = case.meta.seq_lens.double()
    return {"tflop_per_s": 4 * d * heads * float((lens * (lens + 1) / 2).sum()) / us / 1e6}


def timed(backend, cases: list[Case], samples: int) -> tuple[list[float], list[float] | None, bool]:
    """(microseconds a call, the direct call's or None, was it a CUDA graph): a sample is one call a case, in a row."""
    for case in cases:
        case.meta.kernel = backend.build(case.meta)
    graph = backend.cuda_graphs and device() == "cuda"

    def ours():
        for c in cases:
            backend.forward(c.q, c.k, c.v, c.kv_cache, c.meta)

    steps = [ready(ours, graph)]
    def directly():
        for call in calls:
            call()

    try:
        calls = [direct(backend, c) for c in cases]
        if all(calls):
            steps.append(ready(directly, graph))
    except Exception as e:  # another release of the package, say: ours still counts
        warnings.warn(f"{backend.name}: no direct call: {type(e).__name__}: {e}", stacklevel=2)
    us = [[t / len(cases) for t in times] for times in in_turn(steps, samples)]
    return us[0], us[1] if len(us) > 1 else None, graph


def ready(step: Callable, graph: bool) -> Callable:
    """The step warm, and as a CUDA graph if so asked."""
    for _ in range(3):
        step()
    if graph:
        captured, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        with torch.cuda.stream(stream):  # which a capture that fails would not give back
            with torch.cuda.graph(captured):
                step()
        step = captured.replay
    step()
    return step


def in_turn(steps: list[Callable], samples: int) -> list[list[float]]:
    """Microseconds of each step's samples: one of each after the other, so that clocks and heat treat them alike."""
    if device() == "cpu":
        rounds = [[seconds(step) * 1e6 for step in steps] for _ in range(samples)]
        return [list(times) for times in zip(*rounds)]
    events = [[[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(samples)] for _ in steps]
    for pairs in zip(*events):
        for step, (begin, end) in zip(steps, pairs):
            begin.record()
            step()
            end.record()
    torch.cuda.synchronize()
    return [[begin.elapsed_time(end) * 1e3 for begin, end in pairs] for pairs in events]


def seconds(step) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"

"""Diagram 5 under a stopwatch: one attention through every kernel that this machine has.

A prefill is counted in TFLOP/s, since its arithmetic takes the time: 2 products of 2 * d operations for every pair
of a query and a key that it sees. A decode step is counted in GB/s, since reading the keys and values takes the time.
One sample is the mean of one call a layer over 12 layers, each with a cache of its own, so that a cache is no faster
than in a model; on a GPU they are one CUDA graph where the kernel allows. What a kernel computes once a step (`build`)
is left out. The error is the largest difference from fp64, relative above 1. FlexAttention compiles each prefill.
Where a kernel's own package can be called directly (`attention_direct`), `direct_us_median` is the time of that on the
same tensors, its samples taken in turn with ours. The command around it: `commands/bench/attention.py`.
"""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from statistics import median

import torch

from ..attention.matrix import MATRIX
from ..attention.selector import get_attn_backend
from ..errors import UserError
from .attention_case import Case, largest_error, make_case
from .attention_direct import direct
from .stopwatch import captured, in_turn, spread

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
            row = {"backend": name, "kernel_package": backend.load().__name__, "phase": kind, "batch": batch,
                   "seq_len": seq_len, "heads": HEADS, "head_size": head_size, "dtype": in_dtype, "graph": graph,
                   **spread(us), **rate(cases[0], median(us)),
                   **({"direct_us_median": spread(direct_us)["us_median"]} if direct_us else {}),
                   "error_vs_fp64": error}
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

    def directly():
        for call in calls:
            call()

    steps = [ready(ours, graph)]
    try:
        calls = [direct(backend, c) for c in cases]
        if all(calls):
            steps.append(ready(directly, graph))
    except Exception as e:  # another release of the package, say: ours still counts
        warnings.warn(f"{backend.name}: no direct call: {type(e).__name__}: {e}", stacklevel=2)
    us = [[t / len(cases) for t in times] for times in in_turn(steps, torch.device(device()), samples)]
    return us[0], us[1] if len(us) > 1 else None, graph


def ready(step: Callable, graph: bool) -> Callable:
    """The step warm, and as a CUDA graph if so asked."""
    for _ in range(3):
        step()
    if graph:
        step = captured(step)
    step()
    return step


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"

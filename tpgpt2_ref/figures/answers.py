"""Measured answers to the chapters' predictions, from the same rows that the chapters show."""
from __future__ import annotations

from . import rows


def answers(key: str) -> dict:
    """{answer, tolerance, source} of a prediction; a tolerance is a fifth of the answer unless said."""
    value, source = {
        "sum-of-a-token": lambda: (rows.sum_us("nccl"), rows.run("collectives", 2)),
        "naive-over-best": naive_over_best,
        "slower-link": lambda: (rows.slowdown("nccl/host-memory", rows.TOKEN), rows.run("collectives", 2)),
        "xl-on-two": lambda: (speedup("gpt2-xl", 2), rows.run("decode", 2)),
        "decode-floor": lambda: (decode_floor_us(), rows.run("decode", 2)),
    }[key]()
    value = float(f"{value:.3g}")
    return {"answer": value, "tolerance": value / 5, "source": rows.recorded_on(source)}


def naive_over_best():
    run = rows.run("attention", 1)
    found = rows.only(run.rows, phase="prefill", batch=8, seq_len=1024, head_size=64, dtype="float16")
    us = {r["backend"]: r["us_median"] for r in found}
    return us["NAIVE"] / min(us.values()), run


def speedup(model: str, tp: int, batch: int = 1) -> float:
    return rows.step_us(model, 1, batch)[0] / rows.step_us(model, tp, batch)[0]


def decode_floor_us(batch: int = 1, context: int = 192) -> float:
    from .decode import copy_gb_per_s, step_bytes

    return step_bytes("gpt2", batch, context) / copy_gb_per_s() / 1e3

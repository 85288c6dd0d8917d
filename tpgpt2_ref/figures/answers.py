"""Measured answers to the chapters' predictions, from the same rows that the chapters show."""
from __future__ import annotations

from . import rows
from .clusters import wait_us


def answers(key: str) -> dict:
    """{answer, tolerance} of a prediction: what is within a fifth of a measured answer is right."""
    value = {
        "sum-of-a-token": lambda: rows.sum_us("nccl"),
        "naive-over-best": naive_over_best,
        "slower-link": lambda: rows.slowdown("nccl/host-memory", rows.TOKEN),
        "xl-on-two": lambda: speedup("gpt2-xl", 2),
        "decode-floor": decode_floor_us,
        "a-wait": lambda: wait_us("gpt2"),
        "bare-sums": lambda: 100 * bare_sums(),
    }[key]()
    return {"answer": float(f"{value:.3g}"), "tolerance": 0.2}


def naive_over_best() -> float:
    found = rows.only(rows.run("attention", 1).rows, phase="prefill", batch=8, seq_len=1024, head_size=64,
                      dtype="float16")
    us = {r["backend"]: r["us_median"] for r in found}
    return us["NAIVE"] / min(us.values())


def speedup(model: str, tp: int, batch: int = 1) -> float:
    return rows.step_us(model, 1, batch)[0] / rows.step_us(model, tp, batch)[0]


def decode_floor_us(batch: int = 1, context: int = 192) -> float:
    from .decode import copy_gb_per_s, step_bytes

    return step_bytes("gpt2", batch, context) / copy_gb_per_s() / 1e3


def bare_sums() -> float:
    """The part of XL's prefill of 8 prompts of 1,000 tokens on two GPUs that one rank's own part does not take."""
    found = {r["sum"] == "none": r["wall_us_median"] for r in rows.only(
        rows.run("prefill", 2).rows, model="gpt2-xl", tp=2, rung="fused", batch=8, prompt_len=1000)}
    return 1 - found[True] / found[False]

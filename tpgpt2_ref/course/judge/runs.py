"""Witness: recorded runs (`book/results`), of two H200 unless it says otherwise."""
from __future__ import annotations

from functools import cache

from ...attention.vllm_rules import fact, select_as
from ...cost import collectives as cost
from ...cost import forward as cost_forward
from ...recorded import results
from .links import one_way
from .measured import Measured
from .rules import THEN


@cache
def recorded(name: str, gpus: int = 2) -> results.Run:
    """The recorded run of a machine with so many GPUs."""
    return next(run for run in results.recorded(name)
                if run.machine["kind"] == "cuda" and run.machine["count"] == gpus)


def own_link(op: str, path: str | None = None, graph: bool = True, gpus: int = 2) -> dict[int, dict]:
    """{bytes: row} of one algorithm that sums or gathers (None: the fastest) over the GPUs' own link."""
    found: dict[int, dict] = {}
    for row in recorded("collectives", gpus).rows:
        ways = row["path"] == path if path else "/" not in row["path"] and not row["path"].startswith("bare ")
        if row["op"] == op and row["graph"] == graph and ways:
            n = row["bytes"]
            if n not in found or row["us_median"] < found[n]["us_median"]:
                found[n] = row
    return found


def one_token() -> dict[str, float]:
    """Microseconds of the sum of one token's 1,536 bytes over two GPUs, in a CUDA graph, by each way."""
    return {path: own_link("all_reduce", path)[1536]["us_median"] for path in ("push", "one_shot", "two_shot", "nccl")}


def us_per_element() -> Measured:
    """Microseconds a call over elements of bf16, for every size, way and mode that was recorded."""
    run = recorded("collectives")
    return Measured([cost.per_element_us(r["us_median"], r["bytes"]) for r in run.rows if r["op"] == "all_reduce"],
                    run.label)


def bound_by(op: str, sizes=(2**10, 2**26)) -> Measured:
    """What bounds an operation over NCCL, by size: latency where four times the bytes take less than twice as long."""
    found = own_link(op, "nccl")
    return Measured({f"{n:,} B": "latency" if found[4 * n]["us_median"] < 2 * found[n]["us_median"] else "bandwidth"
                     for n in sizes}, recorded("collectives").label)


def share_rows() -> list[dict]:
    """Decode steps and prefills on two GPUs that have one rank's own part beside them: see `measured_shares`."""
    return [r for name, rung in (("decode", "+pdl"), ("prefill", "fused"))
            for r in cost_forward.measured_shares(recorded(name).rows) if r["rung"] == rung]


def shares() -> Measured:
    """Percent of each of those that communication takes."""
    return Measured([100 * r["communication_share"] for r in share_rows()], recorded("decode").label)


def speedups(name: str, rung: str, gpus: int = 2) -> list[dict]:
    """Where several GPUs pay, as recorded: each `decode` step or `prefill` of a rung that one GPU ran too.

    -> [{model, batch, prompt_len, sum, one_us, many_us, speedup}], by model, batch and length; the engine's own rows
    """
    us = "us_per_step_median" if name == "decode" else "wall_us_median"
    case = ("model", "batch", "prompt_len")
    rows = [r for r in (*recorded(name, 2).rows, *(recorded(name, gpus).rows if gpus != 2 else ()))
            if (r["engine"], r["rung"]) == ("tpgpt2", rung)]
    one = {tuple(r[k] for k in case): r[us] for r in rows if r["tp"] == 1}
    return [{**{k: r[k] for k in (*case, "sum")}, "one_us": one[key], "many_us": r[us], "speedup": one[key] / r[us]}
            for r in sorted(rows, key=lambda r: [str(r[k]).zfill(9) for k in (*case, "sum")])
            if r["tp"] == gpus and r["sum"] != "none" and (key := tuple(r[k] for k in case)) in one]


def utilization() -> dict:
    """The most that NCCL's all-reduce gets out of NVLink: {busbw, one_way, share}, GB/s one way."""
    best = max(r["busbw_gb_per_s"] for r in own_link("all_reduce", "nccl", graph=False).values())
    limit = one_way("NVLink 4")
    return {"busbw": best, "one_way": limit, "share": best / limit}


def features_of_fa3() -> Measured:
    """What the diagram says of FlashAttention 3: FP8 and MLA by vLLM's rules, speed by the recorded kernels."""
    mla, run = fact("flash_mla"), recorded("attention", 1)
    fp8 = {sm: select_as(THEN, capability=sm, program="FLASH_ATTN", cache_dtype="fp8")["error"] is None
           for sm in (80, 90)}
    times = {}
    for row in run.rows:
        if row["backend"] in ("FLASH_ATTN_2", "FLASH_ATTN_3", "FLEX_ATTENTION", "XFORMERS"):
            case = tuple(row[k] for k in ("phase", "batch", "seq_len", "head_size", "dtype"))
            times.setdefault(case, {})[row["backend"]] = row["us_median"]
    first = {case: min(us, key=us.get) == "FLASH_ATTN_3" for case, us in times.items()}
    return Measured({"FP8": fp8[90] and not fp8[80], "MLA": mla["9"] and not mla["8"],
                     **{f"the fastest in every {phase}": all(best for case, best in first.items() if case[0] == phase)
                        for phase in ("prefill", "decode")}}, run.label)

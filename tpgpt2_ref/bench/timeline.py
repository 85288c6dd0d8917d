"""Diagram 4 from a real forward: T0 to T5 on every rank, and how long a rank waits before data moves.

    T0  hidden states go in      T1  c_attn      T2  attention, with the gathers of the plan as drawn
    T3  c_proj's product         T4  all-reduce  T5  the result, the same on every rank

The model holds no tracing code: stages come from hooks on its modules, collectives from the recorder (`trace.py`).

**Waiting and transfer.** A collective can't end anywhere before its last rank has begun. With all ranks' times on
one clock, the time from a rank's own start to the last rank's start is waiting, the rest is transfer. In a row that
is `fused` the rest holds what else its kernel does: the bias, the residual and the LayerNorm behind a sum.
**One clock.** CPU ranks of one host share theirs. GPUs don't: their clocks are set to each other by the collectives
themselves, which end on all ranks at nearly the same moment: a rank's offset is the median, over all of them, of how
much later rank 0 saw the end. What remains of the differences after that is the error that the result states.
"""
from __future__ import annotations

import json
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median, quantiles

import torch

from ..errors import RankError
from ..files import write_whole
from ..parallel.collectives import barrier, gather_objects
from ..parallel.watched import unwatched
from ..trace import Trace, now
from .stopwatch import captured, microseconds

STAGES = {"embedding": "embedding", "T1": "c_attn", "T2": "attention", "T3": "c_proj", "T4": "all_reduce",
          "T1-T3": "LayerNorm to c_proj", "mlp": "MLP", "head": "logits",
          "step": "whole step"}  # in the diagram's order, and what it leaves out
CYCLES_PER_US = 1700  # of an H100 or H200 at work, about


@contextmanager
def hooks(model, trace: Trace):
    """Record the model's stages into `trace`: c_attn, attn, c_proj and mlp of each block, embedding and head."""
    watched = {name: module for name, module in model.named_modules() if stage_of(name) not in (None, "T1-T3")}
    cuda, begun, handles = model.world.device.type == "cuda", {}, []

    def before(module, args):
        begun[module] = now(cuda)

    def after(module, args, output):
        trace.stage(module.name, begun.pop(module), now(cuda))

    for module in watched.values():
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    model.world.trace, previous = trace, model.world.trace
    try:
        yield trace
    finally:
        model.world.trace = previous
        for handle in handles:
            handle.remove()


def stage_of(layer: str) -> str | None:
    """The diagram's name for what a module does: "h.3.attn.c_attn" -> "T1"."""
    last = layer.removeprefix("h.").partition(".")[2]  # within its block
    inside = {"attn.c_attn": "T1", "attn.attn": "T2", "attn.c_proj": "T3", "attn": "T1-T3", "mlp": "mlp"}
    whole = {"wte": "embedding", "lm_head": "head", "step": "step"}
    return inside.get(last) if layer.startswith("h.") else whole.get(layer)


def as_a_stage(step, world):
    """step() that a trace records as one stage, "step", too: fused kernels leave `hooks` no modules to watch."""
    cuda = world.device.type == "cuda"

    def whole():
        start = now(cuda) if world.trace else None
        step()
        if world.trace:
            world.trace.stage("step", start, now(cuda))

    return whole


def record(model, step, repeats: int = 5, graph: bool = False) -> dict:
    """Run `step()` a few times on every rank and return the timeline of the run of median length.

    graph  capture it in a CUDA graph first, stages and collectives included, and time the replays
    Returns {"rows", "clock", "clock_error_us", "total_us", "untraced_us", "communication_share", "counts"}, the same
    on every rank. `untraced_us` is the median without a single mark: what marking costs is the difference. With
    programmatic dependent launch that is more than the marks' own time: a kernel behind one can't start early.
    """
    with unwatched(model.world):
        return _record(model, step, repeats, graph)


def _record(model, step, repeats: int, graph: bool) -> dict:
    world = model.world
    for _ in range(2):
        step()  # warm: kernels compiled, memory allocated
    untraced = _untraced_us(captured(step) if graph else step, world, repeats)
    trace = Trace()
    if graph:
        with hooks(model, trace):
            replay = captured(step, warmups=0)  # a warm run would leave marks that are no part of the graph
    runs = []
    for _ in range(repeats):
        barrier(world)
        if graph:
            replay()
        else:
            trace = Trace()
            with hooks(model, trace):
                step()
        trace.finish()
        runs.append((spans(trace), _origin_us(trace)))
    by_length = sorted(range(repeats), key=lambda i: _end(runs[i][0]))
    chosen, origin = runs[gather_objects(by_length[repeats // 2], world)[0]]  # rank 0 picks
    merged = merge(gather_objects({"spans": chosen, "origin_us": origin, "host": _host()}, world))
    return {**merged, "untraced_us": max(gather_objects(untraced, world))}


def waits_when_late(model, step, delay_us: float, late: int = 1, repeats: int = 3) -> list[float]:
    """Microseconds that each rank waits at T4, mean over the layers, while rank `late` comes late to every c_proj."""
    def dawdle(module, args):
        if model.world.device.type == "cuda":
            torch.cuda._sleep(int(delay_us * CYCLES_PER_US))  # the GPU is late, not its host
        else:
            end = time.perf_counter() + delay_us / 1e6
            while time.perf_counter() < end:
                pass

    handles = [block.attn.c_proj.register_forward_pre_hook(dawdle) for block in model.h
               if model.world.rank == late and delay_us]
    try:
        rows = record(model, step, repeats)["rows"]
    finally:
        for handle in handles:
            handle.remove()
    return [mean(r["wait_us"] for r in rows if (r["rank"], r["stage"], r["kind"]) == (rank, "T4", "collective"))
            for rank in range(model.world.size)]


def _untraced_us(step, world, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        barrier(world)
        times.append(microseconds(step, world.device))
    return median(times)


def spans(trace: Trace) -> list[dict]:
    """This rank's stages and collectives as flat rows, by start. A stage of a row-parallel layer ends where its
    sum begins."""
    rows = []
    for c in trace.rows:
        stage = stage_of(c.layer) or "mlp"  # the MLP's sum
        stage = {"T3": "T4", "T1-T3": "T2"}.get(stage, stage)  # q, k and v are gathered before T2
        rows.append(_row(stage, "collective", c.layer, c.start_us, c.microseconds, c.op, c.bytes, c.path,
                         c.fused, c.part))
    for s in trace.stages:
        inner = [c.start_us for c in trace.rows if c.layer.startswith(s.layer) and s.start_us <= c.start_us <= s.end_us]
        end = s.end_us if s.part else min(inner, default=s.end_us)  # what runs under a half's products cuts nothing off
        rows.append(_row(stage_of(s.layer), "compute", s.layer, s.start_us, end - s.start_us, part=s.part))
    result = "T4" if any(r["stage"] == "T4" for r in rows) else "T3"  # one rank has no sum
    for row in [r for r in rows if r["stage"] in ("T1", result)]:
        stage, at = ("T0", row["start_us"]) if row["stage"] == "T1" else ("T5", row["start_us"] + row["us"])
        rows.append(_row(stage, "instant", row["layer"].rpartition(".")[0], at, 0.0))
    return sorted(rows, key=lambda r: (r["start_us"], r["kind"] != "instant"))


def _row(stage, kind, layer, start_us, us, op=None, nbytes=None, path=None, fused=None, part="") -> dict:
    return {"stage": stage, "kind": kind, "layer": layer, "op": op, "bytes": nbytes, "path": path, "fused": fused,
            **({"part": part} if part else {}), "start_us": start_us, "us": us, "wait_us": None, "transfer_us": None}


def merge(by_rank: list[dict]) -> dict:
    """All ranks' spans on rank 0's clock, each collective's time split into waiting and transfer."""
    calls = [[s for s in rank["spans"] if s["kind"] == "collective"] for rank in by_rank]
    names = [[(c["op"], c["layer"]) for c in mine] for mine in calls]
    if any(n != names[0] for n in names):
        raise RankError("the ranks ran different collectives: there is no common timeline")
    clock, offsets, error = align(by_rank, calls)
    for rank, offset in zip(by_rank, offsets, strict=True):
        for span in rank["spans"]:
            span["start_us"] += offset
    for same in zip(*calls, strict=True):
        last = max(c["start_us"] for c in same)
        for c in same:
            c["wait_us"] = min(last - c["start_us"], c["us"])
            c["transfer_us"] = c["us"] - c["wait_us"]
    first = min(rank["spans"][0]["start_us"] for rank in by_rank)
    rows = [{"rank": r, **span, "start_us": span["start_us"] - first}
            for r, rank in enumerate(by_rank) for span in rank["spans"]]
    total = _end(rows)
    moving = [sum(c["us"] for c in mine) for mine in calls]
    counts = {op: sum(name == op for name, _ in names[0]) for op, _ in names[0]}
    return {"rows": rows, "clock": clock, "clock_error_us": error, "total_us": total, "counts": counts,
            "communication_share": mean(moving) / total,
            "waiting_share": mean(sum(c["wait_us"] for c in mine) for mine in calls) / total}


def align(by_rank: list[dict], calls: list[list[dict]]) -> tuple[str, list[float], float]:
    """(how, what to add to each rank's times, the error of doing so), in microseconds."""
    origins = [rank["origin_us"] for rank in by_rank]
    if len(by_rank) == 1:
        return "one rank", [0.0], 0.0
    if None not in origins and len({rank["host"] for rank in by_rank}) == 1:
        return "shared by the ranks of this host", [o - origins[0] for o in origins], 0.0
    ends = [[c["start_us"] + c["us"] for c in mine if c["op"] != "broadcast"] for mine in calls]
    late = [[zero - end for zero, end in zip(ends[0], mine, strict=True)] for mine in ends]
    offsets = [median(differences) for differences in late]
    left = [abs(d - offset) for differences, offset in zip(late[1:], offsets[1:], strict=True) for d in differences]
    return "set by the ends of the collectives", offsets, quantiles([0.0, *left], n=10)[-1]


def text(timeline: dict) -> str:
    """The timeline as Diagram 4 draws it: a line a stage, a column a rank, means over the layers."""
    ranks = range(1 + max(r["rank"] for r in timeline["rows"]))
    head = "".join(f"rank {r}".ljust(40) for r in ranks)
    lines = [f"{'TIME':6}{'OPERATION':28}{head}", "=" * (34 + 40 * len(ranks))]
    for stage, name in {"T0": "hidden states", **STAGES, "T5": "result"}.items():
        rows = [r for r in timeline["rows"] if r["stage"] == stage]
        if rows and rows[0]["op"] and stage[0] != "T":  # of a rung's step only the collectives are known
            lines.append(f"{'':6}{name}")
        for kind, op in dict.fromkeys((r["kind"], r["op"]) for r in rows):
            cells = [_cell([r for r in rows if (r["rank"], r["kind"], r["op"]) == (rank, kind, op)]) for rank in ranks]
            label = f"<-> sync point: {op}" if op else name
            lines.append(f"{stage if stage[0] == 'T' else '':6}{label:28}" + "".join(c.ljust(40) for c in cells))
            if fused := next((r["fused"] for r in rows if r["op"] == op and r.get("fused")), None):
                lines.append(f"{'':6}    and in the same kernel: {fused}")
    return "\n".join(lines)


def _cell(rows: list[dict]) -> str:
    if rows[0]["kind"] == "instant":
        return f"x{len(rows)}"
    us = f"x{len(rows)} {mean(r['us'] for r in rows):.1f} us"
    if rows[0]["kind"] == "compute":
        return us
    return f"{us} = wait {mean(r['wait_us'] for r in rows):.1f} + {mean(r['transfer_us'] for r in rows):.1f}"


def perfetto(timeline: dict) -> dict:
    """Chrome's trace format, which https://ui.perfetto.dev opens: a process a rank, stages above collectives."""
    events = []
    for rank in range(1 + max(r["rank"] for r in timeline["rows"])):
        names = (("process_name", 0, f"rank {rank}"), ("thread_name", 0, "stages"), ("thread_name", 1, "collectives"))
        events += [{"ph": "M", "name": kind, "pid": rank, "tid": tid, "args": {"name": name}}
                   for kind, tid, name in names]
    for r in timeline["rows"]:
        about = {k: r[k] for k in ("layer", "part", "op", "bytes", "path", "fused") if r.get(k)}
        base = {"pid": r["rank"], "ts": r["start_us"], "args": about}
        if r["kind"] == "collective":
            events += [{**base, "ph": "X", "tid": 1, "name": r["op"], "cat": "collective", "dur": r["us"]},
                       {**base, "ph": "X", "tid": 1, "name": "wait", "cat": "wait", "dur": r["wait_us"]}]
        elif r["kind"] == "compute":
            events.append({**base, "ph": "X", "tid": 0, "name": f"{r['stage']} {STAGES[r['stage']]}", "cat": "stage",
                           "dur": r["us"]})
        else:
            events.append({**base, "ph": "i", "tid": 0, "name": r["stage"], "s": "t"})
    return {"displayTimeUnit": "ns", "traceEvents": events}


def export(timeline: dict, path: str) -> None:
    """Write `perfetto(timeline)`, whole or not at all."""
    write_whole(path, json.dumps(perfetto(timeline)))


def _end(rows: list[dict]) -> float:
    return max(r["start_us"] + r["us"] for r in rows)


def _origin_us(trace: Trace) -> float | None:
    """The first span's start on this host's clock; a GPU's events have none."""
    starts = [start for _, start, _ in trace.marks]
    return min(starts) / 1e3 if isinstance(starts[0], int) else None


def _host() -> str:
    """Processes with the same answer share a clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(uuid.getnode())

"""Diagram 4: one layer of a recorded (or live) forward as lanes, its times as a table, and who pays for a late rank."""
from __future__ import annotations

from statistics import mean

from ..bench.timeline import STAGES
from ..notebook.palette import COMPUTING, MOVING, WAITING
from ..notebook.style import RANK_COLOURS, show
from ..recorded.results import Run
from . import rows

GRAPH = {"decode": True, "prefill": False}  # the recorded ones: a decode step in a graph, a prefill launched one by one


def recorded(phase: str, plan: str = "shipped", gpus: int = 2) -> tuple[list[dict], Run]:
    run = rows.run("timeline", gpus)
    return rows.only(run.rows, plan=plan, phase=phase, graph=GRAPH[phase]), run


def timeline_layer(what="decode", layer: int = 6) -> None:
    """One layer as lanes. what: "decode" or "prefill" of two recorded GPUs, or what `bench.timeline.record` gave."""
    import matplotlib.pyplot as plt

    spans, run = recorded(what) if isinstance(what, str) else (what["rows"], None)
    spans = [r for r in spans if r["layer"].startswith(f"h.{layer}.") and r["kind"] != "instant"]
    first, lanes = min(r["start_us"] for r in spans), 1 + max(r["rank"] for r in spans)
    figure, ax = plt.subplots(figsize=(9, 1.1 + 0.75 * lanes))
    for r in spans:
        start, lane = r["start_us"] - first, (r["rank"] - 0.32, 0.64)
        if r["kind"] == "compute":
            ax.broken_barh([(start, r["us"])], lane, color=COMPUTING, edgecolor="none")
            ax.annotate(r["stage"], (start + r["us"] / 2, r["rank"] - 0.38), ha="center", fontsize=8)
        else:
            ax.broken_barh([(start, r["wait_us"])], lane, color=WAITING, edgecolor="none")
            ax.broken_barh([(start + r["wait_us"], r["transfer_us"])], lane, color=MOVING, edgecolor="none")
    busy = {kind: mean(sum(r[field] for r in spans if r["rank"] == rank and r["kind"] == of) for rank in range(lanes))
            for kind, field, of in (("computing", "us", "compute"), ("waiting", "wait_us", "collective"),
                                    ("in a sum", "transfer_us", "collective"))}
    whole = max(r["start_us"] + r["us"] for r in spans) - first
    gaps = whole - sum(busy.values())
    for colour, name in ((COMPUTING, "computing"), (WAITING, "waiting for the other rank"), (MOVING, "the sum itself")):
        ax.broken_barh([(0, 0)], (0, 0), color=colour, label=name)
    ax.set(yticks=range(lanes), yticklabels=[f"rank {r}" for r in range(lanes)], xlabel="µs", ylim=(lanes - 0.4, -0.7),
           title=f"Layer {layer}: {busy['computing'] / whole:.0%} computing, {busy['in a sum'] / whole:.0%} in sums, "
                 f"{busy['waiting'] / whole:.0%} waiting, {gaps / whole:.0%} nothing at all")
    for rank, label in enumerate(ax.get_yticklabels()):
        label.set_color(RANK_COLOURS[rank])
    ax.grid(False)
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2, handlelength=1.2)
    show(figure, f"Lanes of {lanes} ranks over {whole:.0f} microseconds of one layer: c_attn, attention, c_proj, "
         f"a sum, the MLP "
         f"and its sum. A rank computes {busy['computing']:.0f} microseconds, is in sums {busy['in a sum']:.0f}, waits "
         f"{busy['waiting']:.0f}, and does nothing for {gaps:.0f}.")
    if run is not None:
        how = "in a CUDA graph" if spans[0]["graph"] else "launched kernel by kernel"
        path = ", ".join(sorted({r["path"] for r in spans if r["path"]}))
        rows.note(f"{rows.recorded_on(run)} GPT-2 small, 8 sequences, {how}; sums by {path}. Marks between "
             f"kernels cost "
                  "time of their own.")


def timeline_table(phase: str = "decode") -> None:
    """Mean microseconds of each stage over the layers, both ranks."""
    spans, run = recorded(phase)
    lines = []
    for stage, name in STAGES.items():
        for kind in ("compute", "collective"):
            mine = [r for r in spans if r["stage"] == stage and r["kind"] == kind]
            if mine:
                cells = [mean(r["us"] for r in mine if r["rank"] == rank) for rank in (0, 1)]
                wait = mean(r["wait_us"] for r in mine) if kind == "collective" else None
                who = f"sum by {mine[0]['path']}" if mine[0]["op"] == "all_reduce" else mine[0]["op"] or name
                lines.append([stage, who, *(f"{c:.1f}" for c in cells), "" if wait is None else f"{wait:.1f}"])
    rows.table(["stage", "what", "rank 0, µs", "rank 1, µs", "of it waiting"], lines,
               rows.recorded_on(run) + " Means over 12 layers; the embedding and the head once.")


def late_rank(measured: list[tuple[float, list[float]]]) -> None:
    """measured: [(rank 1's delay in microseconds, [what each rank waits at T4 in microseconds])], live."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.8, 3.3))
    delays = [delay for delay, _ in measured]
    for rank in range(len(measured[0][1])):
        ax.plot(delays, [waits[rank] for _, waits in measured], "o-", color=RANK_COLOURS[rank], label=f"rank "
             f"{rank} waits")
    ax.plot(delays, delays, color="#9a9a9a", linestyle=":", label="the delay itself")
    last, waits = measured[-1]
    ax.set(xlabel="rank 1 is late by, µs", ylabel="waiting at T4, µs",
           title=f"Rank 1 is {last:,.0f} µs late: rank 0 waits {waits[0]:,.0f} µs, rank 1 {waits[1]:,.0f}")
    ax.legend()
    show(figure, f"Waiting at T4 against rank 1's delay. Rank 0's line follows the delay, rank 1's stays low: at "
         f"{last:,.0f} "
         f"microseconds rank 0 waits {waits[0]:,.0f}, rank 1 {waits[1]:,.0f}.")

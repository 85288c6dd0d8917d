"""Hiding a sum: recorded (or live) timelines of a prefill in one piece and in halves, and what the halves gain."""
from __future__ import annotations

from ..config import FAMILY
from ..errors import UserError
from ..notebook.palette import COMPUTING, MOVING, WAITING
from ..notebook.style import RANK_COLOURS, show
from ..recorded.results import Run
from . import rows

FORMS = {"fused": "In one piece", "halves": "In two halves"}


def hidden_lanes(layers: tuple[int, int] = (6, 7)) -> None:
    """A lane for the whole batch, then one for each half, of both ranks, over two layers, on one scale."""
    import matplotlib.pyplot as plt

    if (run := recorded("hidden")) is None:
        return
    spans = {form: [r for r in run.rows if r["rung"] == form and r["stage"] != "T1"
                    and layers[0] <= int(r["layer"].split(".")[1]) <= layers[1]] for form in FORMS}
    figure, axes = plt.subplots(2, 1, figsize=(9, 4.6), sharex=True, gridspec_kw={"height_ratios": (2, 4)})
    said = []
    for ax, (form, mine) in zip(axes, spans.items()):
        first, end = min(r["start_us"] for r in mine), max(r["start_us"] + r["us"] for r in mine)
        lanes = {lane: y for y, lane in enumerate(sorted({(r["rank"], r.get("part", "")) for r in mine}))}
        for r in mine:
            start, lane = r["start_us"] - first, (lanes[r["rank"], r.get("part", "")] - 0.4, 0.8)
            if r["kind"] == "compute":
                ax.broken_barh([(start, r["us"])], lane, color=COMPUTING, edgecolor="white")
            else:
                ax.broken_barh([(start, r["wait_us"])], lane, color=WAITING, edgecolor="none")
                ax.broken_barh([(start + r["wait_us"], r["transfer_us"])], lane, color=MOVING, edgecolor="none")
        bare = idle([r for r in mine if r["rank"] == 0 and r["kind"] == "compute"], first, end)
        said.append(f"{FORMS[form].lower()} {end - first:,.0f} microseconds, {bare:.0%} of them without a product")
        ax.set(yticks=list(lanes.values()), yticklabels=[f"rank {rank} {half}".strip() for rank, half in lanes],
               ylim=(len(lanes) - 0.4, -0.6),
               title=f"{FORMS[form]}: {end - first:,.0f} µs, {bare:.0%} without a product")
        for (rank, _), label in zip(lanes, ax.get_yticklabels()):
            label.set_color(RANK_COLOURS[rank])
        ax.grid(False)
    axes[-1].set_xlabel("µs")
    for colour, name in ((COMPUTING, "products and what lies between"), (WAITING, "waiting for the other rank"),
                         (MOVING, "the sum itself")):
        axes[-1].broken_barh([(0, 0)], (0, 0), color=colour, label=name)
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1.2,
                  handlelength=1.2)
    show(figure, f"Lanes of both ranks over layers {layers[0]} and {layers[1]}: " + "; ".join(said) + ".")
    r, path = run.rows[0], {form: next(r["path"] for r in mine if r["path"]) for form, mine in spans.items()}
    rows.note(f"{rows.recorded_on(run)} GPT-2 {rows.NAMES[r['model']]}, {r['batch']} prompts of {r['prompt_len']:,} "
              f"tokens, in a CUDA graph; sums by {path['fused']} in one piece, by {path['halves']} in halves"
              + next((f" ({r['form']})" for r in spans["halves"] if r.get("form")), "")
              + ". Marks between kernels cost time of their own.")


def idle(spans: list[dict], first: float, end: float) -> float:
    """The share of first to end that no span covers."""
    covered, at = 0.0, first
    for r in sorted(spans, key=lambda r: r["start_us"]):
        stop = r["start_us"] + r["us"]
        covered += max(0.0, stop - max(at, r["start_us"]))
        at = max(at, stop)
    return 1 - covered / (end - first)


def recorded(name: str) -> Run | None:
    """The newest run of two GPUs; where there is none yet, a note says so."""
    try:
        return rows.run(name, 2)
    except UserError:
        rows.note("No prefill in two halves is recorded on two GPUs yet: here it will stand.")
        return None


def hidden_gain() -> None:
    """Wall clock in one piece and in halves, largest sums first, and which of them the engine takes by itself."""
    if (run := recorded("prefill_halves")) is None:
        return
    from ..engine.halves import WORTH

    cases, lines = {}, []
    for r in rows.only(run.rows, tp=2):
        cases.setdefault((r["model"], r["batch"], r["prompt_len"]), {})[r["rung"]] = r
    for (model, batch, length), by in cases.items():
        if "halves" not in by:
            continue  # one prompt
        nbytes, us = batch // 2 * length * FAMILY[model].n_embd * 2, [by[f]["wall_us_median"] for f in FORMS]
        lines.append((nbytes, [rows.NAMES[model], f"{batch} x {length:,}", f"{nbytes / 1e6:.1f} MB",
                               *(f"{t / 1e3:.2f} ms" for t in us), f"{us[1] / us[0] - 1:+.0%}".replace("-", "−"),
                               "halves" if nbytes >= WORTH[2] else "one piece"]))
    rows.table(["model", "prompts", "a half's sum", "in one piece", "in halves", "difference", "the engine takes"],
               [line for _, line in sorted(lines, reverse=True)],
               rows.recorded_on(run) + " Wall clock, bf16, in a CUDA graph, each by the sum that is fastest there.")


def hidden_tried() -> None:
    """Every form of one prefill that was measured, fastest first."""
    if (run := recorded("prefill_tried")) is None:
        return
    mine = [r for r in rows.only(run.rows, model="gpt2-xl", batch=8, prompt_len=1000) if r["graph"]]
    rows.table(["form", "sums by", "wall clock", "GPU"],
               [[r["form"], r["sum"], f"{r['wall_us_median'] / 1e3:.2f} ms", f"{r['gpu_us_median'] / 1e3:.2f} ms"]
                for r in sorted(mine, key=lambda r: r["gpu_us_median"])],
               "GPT-2 XL, 8 prompts of 1,000 tokens, two GPUs, in a CUDA graph. " + rows.recorded_on(run))

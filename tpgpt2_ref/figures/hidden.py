"""Hiding a sum: recorded (or live) timelines of a prefill in one piece and in halves, and what the halves gain."""
from __future__ import annotations

from ..errors import UserError
from ..notebook.palette import COMPUTING, MOVING, WAITING
from ..notebook.style import show
from . import rows

FORMS = {"fused": "in one piece", "halves": "in two halves"}
SHADE = {"": 1.0, "A": 1.0, "B": 0.5}  # of a half's products


def hidden_lanes(live: dict[str, list[dict]] | None = None, layers: tuple[int, int] = (6, 7)) -> None:
    """Rank 0's and rank 1's lanes, products above sums, over two layers of both forms, on one scale.

    live  {"fused": rows, "halves": rows} that `bench.timeline.record` gave; None: the recorded ones, if there are
    """
    import matplotlib.pyplot as plt

    run = None
    if live is None:
        try:
            run = rows.run("hidden", 2)
        except UserError:
            rows.note("No prefill in two halves is recorded on two GPUs yet: here its timeline will stand.")
            return
        live = {form: rows.only(run.rows, rung=form) for form in FORMS}
    spans = {form: [r for r in found if r["stage"] != "T1" and r["kind"] != "instant" and any(
        r["layer"].startswith(f"h.{layer}.") for layer in range(layers[0], layers[1] + 1))]
        for form, found in live.items()}
    ranks = 1 + max(r["rank"] for r in spans["halves"])
    figure, axes = plt.subplots(2, 1, figsize=(9, 1.6 + 1.3 * ranks), sharex=True)
    said = {}
    for ax, (form, mine) in zip(axes, spans.items()):
        first = min(r["start_us"] for r in mine)
        for r in mine:
            y = 2.3 * r["rank"] + (r["kind"] == "collective")
            start, shade = r["start_us"] - first, SHADE[r.get("part", "")]
            if r["kind"] == "compute":
                ax.broken_barh([(start, r["us"])], (y, 0.85), color=COMPUTING, alpha=shade, edgecolor="none")
            else:
                ax.broken_barh([(start, r["wait_us"])], (y, 0.85), color=WAITING, edgecolor="none")
                ax.broken_barh([(start + r["wait_us"], r["transfer_us"])], (y, 0.85), color=MOVING, edgecolor="none")
            if r.get("part"):
                ax.annotate(r["part"], (start + r["us"] / 2, y + 0.43), ha="center", va="center", fontsize=8,
                            color="white" if shade == 1 or r["kind"] == "collective" else "black")
        end = max(r["start_us"] + r["us"] for r in mine) - first
        busy = sum(r["us"] for r in mine if r["kind"] == "compute" and r["rank"] == 0)
        said[form] = (end, 1 - busy / end)
        ax.set(yticks=[2.3 * rank + lane + 0.43 for rank in range(ranks) for lane in (0, 1)], ylim=(2.3 * ranks, -0.2),
               yticklabels=[f"rank {rank}, {lane}" for rank in range(ranks) for lane in ("products", "sums")],
               title=f"{FORMS[form]}: {end:,.0f} µs, {1 - busy / end:.0%} of them without a product")
        ax.grid(False)
    axes[-1].set_xlabel("µs")
    for colour, name in ((COMPUTING, "products and what lies between"), (WAITING, "waiting for the other rank"),
                         (MOVING, "the sum itself")):
        axes[-1].broken_barh([(0, 0)], (0, 0), color=colour, label=name)
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1.2,
                  handlelength=1.2)
    show(figure, f"Lanes of {ranks} ranks over layers {layers[0]} to {layers[1]}, products above sums. " + "; ".join(
        f"{FORMS[form]} {end:,.0f} microseconds, {idle:.0%} of them without a product on rank 0"
        for form, (end, idle) in said.items()) + ".")
    if run is not None:
        r = run.rows[0]
        path = {form: next(r["path"] for r in spans[form] if r["path"]) for form in FORMS}
        rows.note(f"{rows.recorded_on(run)} GPT-2 {rows.NAMES[r['model']]}, {r['batch']} prompts of "
                  f"{r['prompt_len']:,} tokens, in a CUDA graph; sums by {path['fused']} in one piece, by "
                  f"{path['halves']} in halves. Marks between kernels cost time of their own.")


def hidden_gain() -> None:
    """Wall clock of recorded prefills in one piece and in halves, and one rank's own part, which has no sum."""
    run = rows.run("prefill", 2)
    lines = []
    for r in run.rows:
        if r["rung"] == "halves" and r["sum"] != "none":
            case = {k: r[k] for k in ("model", "tp", "batch", "prompt_len", "dtype")}
            same = [x for x in rows.only(run.rows, rung="fused", engine="tpgpt2", **case)]
            one = min((x["wall_us_median"] for x in same if x["sum"] != "none"), default=None)
            own = min((x["wall_us_median"] for x in same if x["sum"] == "none"), default=None)
            if one and own:
                two = r["wall_us_median"]
                lines.append([rows.NAMES[r["model"]], f"{r['batch']} x {r['prompt_len']:,}", f"{one / 1e3:.2f} ms",
                              f"{two / 1e3:.2f} ms", f"{own / 1e3:.2f} ms", f"{(one - two) / (one - own):.0%}"])
    if lines:
        rows.table(["model", "prompts", "in one piece", "in halves", "without sums", "of the sums hidden"], lines,
                   rows.recorded_on(run) + " Two GPUs, wall clock, bf16.")
    else:
        rows.note("No prefill in two halves is recorded on two GPUs yet: here its times will stand.")

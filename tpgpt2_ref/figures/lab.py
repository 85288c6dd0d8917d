"""The lab notes' tables: what was predicted, what was tried, which tiles won, how the cost model's fits hold."""
from __future__ import annotations

import ast

from ..config import FAMILY
from ..cost import collectives as model
from ..cost import forward as steps
from ..notebook.style import show
from ..recorded import results
from . import rows

# Written down before each measurement: a guess made of bytes and of one microsecond and a bit a kernel's end.
GUESSES = (
    ("batch 1, fused kernels and PDL: 1.5 µs for each of 60 kernels, 20 for the head", 115,
     lambda: rows.step_us("gpt2", 1, 1)[0]),
    ("batch 8, fused kernels and PDL", 200, lambda: rows.step_us("gpt2", 1, 8)[0]),
    ("batch 64: attention, and products of 4 µs", 400, lambda: rows.step_us("gpt2", 1, 64)[0]),
    ("push, an all-reduce of 16 KB, each call set up while the one before runs", 3.0,
     lambda: rows.sum_us("push", 16384)),
    ("prefill of 8 prompts of 1,000 tokens, GPU time", 3300, lambda: rows.only(
        rows.run("prefill", 2).rows, model="gpt2", tp=1, batch=8, prompt_len=1000, rung="fused")[0]["gpu_us_median"]),
)

FILL = {2: "full", 4: "none"}  # shades alone are too alike


def lab_predictions() -> None:
    lines = [[what, f"{guess:,} µs", f"{us():,.1f} µs", "yes" if abs(us() / guess - 1) <= 0.2 else "no"]
             for what, guess, us in GUESSES]
    rows.table(["what", "predicted", "measured", "within a fifth"], lines)


def lab_tried() -> None:
    run = rows.run("decode_tried", 1)
    lines, whole, before = [], "", ""
    for r in run.rows:
        same, _, change = r["what"].partition("; ")
        if same != "the same":
            whole = before = r["what"]
        elif change:  # what was tried, with one thing changed
            before = f"{whole}; {change}"
        what = before if before == r["what"] else f"again: {before}"
        guess, without = ("" if us is None else f"{us:,}" for us in (r["predicted_us"], r["without_us"]))
        lines.append([r["model"], r["batch"], what, guess,
                      f"{r['us']:,} {r['measure'].replace('us ', 'µs ', 1)}", without,
                      {True: "yes", False: "no", None: ""}[r["kept"]]])
    rows.table(["model", "batch", "what", "predicted, µs", "measured", "without it, µs", "kept"], lines,
               rows.recorded_on(run))


def lab_tiles() -> None:
    """The best and the worst tile of each kernel that was tried, by batch, on one GPU."""
    run, lines = rows.run("decode_tiles", 1), []
    small = rows.only(run.rows, model="gpt2", tp=1)
    for batch in (1, 8, 64):
        for choice in sorted({r["choice"] for r in small} - {"start", "end"}):
            mine = rows.only(small, batch=batch, choice=choice)
            best, worst = (f(mine, key=lambda r: r["us_per_step"]) for f in (min, max))
            tile = ", ".join(f"{k.lower()} {v}" for k, v in ast.literal_eval(best["tile"]).items())
            lines.append([batch, choice, tile, f"{best['us_per_step']:.1f}", f"{worst['us_per_step']:.1f}", len(mine)])
    rows.table(["batch", "kernel", "best tile", "µs a step", "worst, µs", "tried"], lines,
               "GPT-2 small on one GPU; decode_tiles.json has the rest. " + rows.recorded_on(run))


def lab_cudnn() -> None:
    run, met, lines = rows.run("transformers_cudnn", 1), set(), []
    for r in run.rows:
        case = (r["process"], r["prompt_len"], r["cudnn_attention"])
        lines.append([f"{r['process']}, {r['run']}", r["prompt_len"], "allowed" if r["cudnn_attention"] else "off",
                      "as before" if case in met else "new", r["threads"], f"{r['us_first_step']:,}",
                      f"{r['us_per_step_median']:,}"])
        met.add(case)
    rows.table(["process, run", "prompt", "cuDNN's attention", "lengths", "threads", "first step, µs", "median "
         "step, µs"],
               lines, rows.recorded_on(run))


def lab_clusters() -> None:
    """Forms of two kernels a layer on the way to the one that stands."""
    run = rows.run("clusters_tried", 1)
    rows.table(["form", "model, batch", "step, whole loop", "step, GPU alone"],
               [[r["form"], f"{rows.NAMES[r['model']]}, {r['batch']}",
                 *(f"{r['us']:,.0f} µs" if r["clock"] == clock else "" for clock in ("loop", "graph"))]
                for r in run.rows],
               "bf16, medians, about 192 tokens in the cache; several machines of the kind, without samples. "
               + rows.recorded_on(run))


def lab_fit_halves() -> None:
    lines = []
    for run in results.recorded("collectives"):
        if run.machine["kind"] != "cuda":
            continue
        gpus = run.machine["count"]
        shipped = [r for r in rows.run("cost_model", gpus).rows if "to_bytes" in r]
        for name, fit in (("every second size from the smallest on", shipped),
                          ("the sizes between", model.fit_collectives(run.rows, first=1))):
            worst = {(r["op"], r["path"], r["graph"]): (r["heldout_median_error"], r["heldout_worst_error"])
                     for r in fit}
            good = [w <= 0.25 for m, w in worst.values() if m <= 0.08]
            lines.append([f"{gpus} GPUs", name, len(worst), len(good), sum(good)])
    rows.table(["machine", "fitted to", "paths", "median error within 8 %", "and the worst within 25 %"], lines,
               "Errors are of held-out sizes: sizes that the fit never saw.")


def lab_step_fits() -> None:
    lines = []
    for gpus in (1, 2, 4):
        for f in rows.run("cost_model", gpus).rows:
            if f["op"] in ("decode", "prefill"):
                what = f["path"] + (f", batch {f['from_batch']} and more" if f["from_batch"] > 1 else "")
                lines.append([f"{gpus} GPU{'s' * (gpus > 1)}", f["op"], what, f["heldout_points"],
                              f"{f['heldout_median_error']:.1%}", f"{f['heldout_worst_error']:.1%}",
                              f"{f['heldout_within_15_percent']:.0%}", f"{f['draws_within_15_percent']:.0%}"])
    rows.table(["machine", "phase", "rung", "held out", "median error", "worst", "within 15 %", "over forty "
         "draws"], lines, "Held out: steps that the fit never saw. Forty draws: the share within 15 % over forty "
               "random halves, each fitted to one half and judged on the other.")


def lab_shares() -> None:
    """Measured share of communication against the price of the same collectives by the model, a dot a recorded step."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7.5, 3.8))
    above = {"push": [], "nccl": []}
    for gpus in (2, 4):
        links = rows.run("cost_model", gpus).rows
        for name, field, rung in (("decode", "us_per_step_median", "+pdl"), ("prefill", "wall_us_median", "fused")):
            for r in steps.measured_shares(rows.run(name, gpus).rows):
                if (r["tp"], r["rung"]) == (gpus, rung) and r["sum"] in above:
                    calls = steps.collectives(FAMILY[r["model"]], gpus, r["batch"],
                                              1 if name == "decode" else r["prompt_len"], rung=rung)
                    priced = steps.communication_us(links, calls, gpus, r["sum"], True, rung)[0] / r[field]
                    above[r["sum"]].append(priced > r["communication_share"])
                    ax.plot(100 * r["communication_share"], 100 * priced, "o" if r["sum"] == "push" else "s",
                            color=rows.BY_GPUS[gpus], fillstyle=FILL[gpus], alpha=0.8)
    for path, mark in (("push", "o"), ("NCCL", "s")):
        for gpus in (2, 4):
            ax.plot([], [], mark, color=rows.BY_GPUS[gpus], fillstyle=FILL[gpus], label=f"{path}, {gpus} GPUs")
    ax.plot([0, 100], [0, 100], color=rows.SHADES[0], linewidth=1)
    said = {p: f"{sum(a)} of {len(a)}" for p, a in above.items()}
    ax.set(xlabel="communication's share, measured, %", ylabel="priced by the model, %",
           title=f"Priced too high: {said['nccl']} steps over NCCL, {said['push']} over push")
    ax.legend()
    show(figure, f"Priced against measured share of communication, a dot a recorded step. Above the diagonal, "
         f"priced too high: "
         f"{said['nccl']} steps over NCCL and {said['push']} over push.")
    rows.note(rows.recorded_on(rows.run("decode", 2), rows.run("decode", 4)))

"""The cost page: where several GPUs pay, what a message costs, and how far the model that says so is off."""
from __future__ import annotations

from statistics import median

from ..config import FAMILY
from ..cost import collectives as model
from ..cost import forward as steps
from ..errors import UserError
from ..notebook.palette import GREY, MOVING
from ..notebook.style import show
from . import rows


def second_gpu() -> None:
    """One GPU's time over that of two and four, for every recorded decode step and prefill."""
    import matplotlib.pyplot as plt

    cases = [("decode, batch 1", lambda m, tp: rows.step_us(m, tp, 1)[0]),
             ("decode, batch 64", lambda m, tp: rows.step_us(m, tp, 64)[0]),
             ("prefill, 8 x 1000", lambda m, tp: rows.prefill_us(m, tp, 8, 1000)[0])]
    figure, axes = plt.subplots(1, len(cases), figsize=(9, 3.4), sharey=True)
    gain = {}
    for ax, (name, us) in zip(axes, cases):
        for tp, colour in ((2, rows.BY_GPUS[2]), (4, rows.BY_GPUS[4])):
            found = [(i, us(m, 1) / us(m, tp)) for i, m in enumerate(rows.MODELS) if us(m, 1) and us(m, tp)]
            ax.plot(*zip(*found), rows.GPU_MARKS[tp] + rows.GPU_DASHES[tp], color=colour, label=f"{tp} GPUs")
            gain |= {(name, rows.MODELS[i], tp): g for i, g in found}
        ax.axhline(1, color=GREY, linewidth=1)
        ax.set(xticks=range(len(rows.MODELS)), xticklabels=[rows.NAMES[m] for m in rows.MODELS], title=name,
               xlim=(-0.3, 3.3))
    axes[0].set_ylabel("times one GPU's speed")
    axes[0].legend(loc="upper left")
    small, xl = (gain["decode, batch 1", m, 2] for m in ("gpt2", "gpt2-xl"))
    figure.suptitle(f"At batch 1 a second GPU makes XL's step {xl:.2f} times as fast, small's {small:.2f} times",
                    x=0.02, ha="left", fontsize=12)
    show(figure, "Speed of two and four GPUs over one, by model, for decode at batch 1 and 64 and for prefill. "
         + "; ".join(f"{n}, {rows.NAMES[m]}, {tp} GPUs: {g:.2f}" for (n, m, tp), g in gain.items()) + ".")
    rows.note(rows.recorded_on(*(rows.run("decode", n) for n in (1, 2, 4)), rows.run("prefill", 2)) + " bf16, "
         "sums by push "
              "where it takes them. Above the grey line more GPUs are faster.")


def second_gpu_table() -> None:
    lines = []
    for m in rows.MODELS:
        us = {(tp, b): rows.step_us(m, tp, b)[0] for tp in (1, 2, 4) for b in (1, 8, 64)}
        for b in (1, 8, 64):
            known = {tp: us[tp, b] for tp in (1, 2, 4) if us[tp, b]}
            best = min(known, key=known.get)
            lines.append([rows.NAMES[m], b, *(f"{us[tp, b]:,.0f}" if us[tp, b] else "not measured" for tp in (1, 2, 4)),
                          f"{best} GPU{'s' * (best > 1)}"])
    rows.table(["model", "batch", "1 GPU, µs", "2 GPUs", "4 GPUs", "fastest"], lines, "Decode steps, 128 new "
         "tokens behind "
               "a prompt of 128.")


def per_element() -> None:
    """The table's unit, held against a recorded sum: microseconds divided by elements."""
    lines = []
    for tokens in (1, 32, 512):
        nbytes = tokens * rows.TOKEN
        row = min((r for r in rows.sums("push")), key=lambda r: abs(r["bytes"] - nbytes))
        lines.append([tokens, f"{row['bytes'] // 2:,}", f"{row['us_median']:.1f} µs",
                      f"{model.per_element_us(row['us_median'], row['bytes']):.5f} µs",
                      f"{row['bytes'] / 2e6:,.1f} to {row['bytes'] / 4e5:,.1f} s" if tokens > 100 else
                      f"{row['bytes'] / 2e3:,.1f} to {row['bytes'] / 4e2:,.1f} ms"])
    rows.table(["tokens", "elements", "a sum takes", "an element", "at 1 to 5 µs an element it would take"], lines,
               "push, in a CUDA graph. " + rows.recorded_on(rows.run("collectives", 2)))


def fit_and_held_out(paths: tuple[str, ...] = ("nccl", "push")) -> None:
    """Fitted sizes (filled), held-out sizes (hollow) and the pieces, in graphs on two GPUs."""
    import matplotlib.pyplot as plt

    run = rows.run("collectives", 2)
    fit = rows.only(rows.run("cost_model", 2).rows, op="all_reduce", world=2)
    figure, ax = plt.subplots(figsize=(8, 3.6))
    errors = {}
    for path, colour in zip(paths, (GREY, MOVING)):
        found, pieces = rows.sums(path), [p for p in fit if (p["path"], p["graph"]) == (path, True)]
        x, y = [r["bytes"] for r in found], [r["us_median"] for r in found]
        ax.plot(x, [model.evaluate(pieces, n) for n in x], color=colour, linewidth=1)
        ax.plot(x[::2], y[::2], "o", color=colour, label=f"{path}, fitted")
        ax.plot(x[1::2], y[1::2], "o", color=colour, markerfacecolor="none", label=f"{path}, not seen by the fit")
        errors[path] = pieces[0]["heldout_median_error"], pieces[0]["heldout_worst_error"]
    ax.set(xscale="log", yscale="log", xlabel="bytes of one rank's input", ylabel="µs a call",
           title="On sizes it has not seen the model errs by " + ", ".join(
               f"{100 * m:.0f} % for {p} (worst {100 * w:.0f} %)" for p, (m, w) in errors.items()))
    ax.legend()
    show(figure, "Recorded all-reduce times against bytes with the fitted pieces through them. Held-out errors: "
         + "; ".join(
        f"{p} {m:.1%} median, {w:.1%} worst" for p, (m, w) in errors.items()) + ".")
    rows.note(rows.recorded_on(run))


def predicted_against_recorded() -> None:
    """Every recorded decode step in a graph on two GPUs and on one: predicted over recorded, fitted or held out."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 3.4))
    off, held = [], {}
    for gpus, colour in ((2, rows.BY_GPUS[2]), (4, rows.BY_GPUS[4])):
        run = rows.run("decode", gpus)
        known = rows.run("cost_model", gpus).rows
        for r in run.rows:
            if (r["engine"], r["rung"]) == ("tpgpt2", "+pdl") and r["tp"] == gpus and r["sum"] == "push":
                us = steps.forward(known, FAMILY[r["model"]], gpus, r["batch"], 1, r["prompt_len"] + 64, rung="+pdl",
                                   path="push")["us"]
                off.append(us / r["us_per_step_median"] - 1)
                ax.plot(r["us_per_step_median"], us, rows.GPU_MARKS[gpus], color=colour)
        held[gpus] = max(f["heldout_worst_error"] for f in known if (f["op"], f["path"]) == ("decode", "+pdl"))
        ax.plot([], [], rows.GPU_MARKS[gpus], color=colour, label=f"{gpus} GPUs")
    low, high = 100, 4000
    ax.plot([low, high], [low, high], color=GREY, linewidth=1)
    ax.fill_between([low, high], [low / 1.15, high / 1.15], [low * 1.15, high * 1.15], color=GREY, alpha=0.2)
    near = sum(abs(x) <= 0.15 for x in off)
    ax.set(xscale="log", yscale="log", xlabel="recorded, µs a decode step", ylabel="predicted",
           title=f"{near} of {len(off)} decode steps lie within 15 % (the band); worst held-out errors of the "
                 "fits: "
                 + ", ".join(f"{100 * worst:.0f} % ({n} GPUs)" for n, worst in held.items()))
    ax.legend(loc="upper left")
    show(figure, f"Predicted against recorded decode step times of two and four GPUs. {near} of {len(off)} lie "
         f"within 15 percent; "
         f"the median deviation is {median(map(abs, off)):.1%}. Half of them were fitted.")
    rows.note(rows.recorded_on(rows.run("decode", 2), rows.run("decode", 4)) + " Half of these steps were fitted; "
              "the other half was held out. The worst errors are of all steps that a fit was judged on, more than are "
              "drawn.")


def shares() -> list[dict]:
    """Recorded steps and prefills of two and four GPUs with the share that communication takes of each."""
    found = []
    for gpus in (2, 4):
        for name, rung in (("decode", "+pdl"), ("prefill", "fused")):
            found += [{**r, "phase": name} for r in steps.measured_shares(rows.run(name, gpus).rows)
                      if r["rung"] == rung and r["tp"] == gpus]
    return found


def communication_share() -> None:
    """Measured share of communication in every recorded step of several GPUs, against the table's 5 to 15 %."""
    import matplotlib.pyplot as plt

    found = shares()
    groups = [("push, 2 GPUs", 2, "push"), ("push, 4 GPUs", 4, "push"), ("NCCL, 2 GPUs", 2, "nccl"),
              ("NCCL, 4 GPUs", 4, "nccl")]
    figure, ax = plt.subplots(figsize=(8, 3))
    said = []
    for y, (name, tp, path) in enumerate(groups):
        for phase, mark in (("decode", "o"), ("prefill", "s")):
            mine = [100 * r["communication_share"] for r in found
                    if (r["tp"], r["sum"], r["phase"]) == (tp, path, phase)]
            ax.plot(mine, [y] * len(mine), mark, color=rows.BY_GPUS[tp], alpha=0.7,
                    label=phase if y == 0 else None)
        mine = [100 * r["communication_share"] for r in found if (r["tp"], r["sum"]) == (tp, path)]
        if mine:
            said.append(f"{name}: {min(mine):.0f} to {max(mine):.0f} % of {len(mine)}")
    ax.axvspan(5, 15, color=GREY, alpha=0.35, linewidth=0)
    shares_of = {tp: [r["communication_share"] for r in found if r["tp"] == tp] for tp in (2, 4)}
    inside = {tp: f"{sum(0.05 <= s <= 0.15 for s in of)} of {len(of)}" for tp, of in shares_of.items()}
    ax.set(yticks=range(len(groups)), yticklabels=[g[0] for g in groups], xlabel="communication, % of the step",
           xlim=(0, 100),
           title=f"In the table's 5 to 15 % (grey): of two GPUs {inside[2]} steps, of four {inside[4]}")
    ax.invert_yaxis()
    ax.legend(loc="upper right")
    show(figure, "Communication's share of each recorded step and prefill. " + "; ".join(said) + ".")
    rows.note(rows.recorded_on(rows.run("decode", 2), rows.run("decode", 4)))


def on_paper() -> None:
    """What fewer GPUs said of four and of eight, as a ring would run it, beside what was recorded there."""
    def known(gpus):
        return rows.run("cost_model", gpus).rows

    def sums(path, nbytes):
        return (lambda gpus, n: model.predict(known(gpus), "all_reduce", nbytes, n, path, graph=True)["us"],
                lambda n: rows.sum_us(path, nbytes, gpus=n))

    def forwards(took, *how):  # batch, tokens, context, rung
        return lambda gpus, n: steps.forward(known(gpus), FAMILY["gpt2-xl"], n, *how)["us"], lambda n: took(n)[0]

    cases = {"a token's sum, push": sums("push", rows.TOKEN), "8 MiB's sum, NCCL": sums("nccl", rows.CUSTOM)}
    for batch in (1, 8, 64):
        cases[f"XL's decode step, batch {batch}"] = forwards(
            lambda n, batch=batch: rows.step_us("gpt2-xl", n, batch), batch, 1, 128 + 64, "+pdl")
    cases["XL's prefill, 8 x 512"] = forwards(lambda n: rows.prefill_us("gpt2-xl", n, 8, 512), 8, 512, 0, "fused")
    lines, off = [], {}
    for name, (says, took) in cases.items():
        line = [name]
        for n, machines in ((4, (2,)), (8, (2, 4))):
            try:
                came = took(n)
            except (UserError, StopIteration):  # no such machine, or not that size
                came = None
            said = {gpus: says(gpus, n) for gpus in machines}
            line += [*(f"{us:,.1f}" for us in said.values()), f"{came:,.1f}" if came else "not recorded"]
            for gpus, us in said.items() if came else ():
                off.setdefault((gpus, n), []).append(us / came)
        lines.append(line)
    note = [f"{gpus} GPUs said {min(of):.2f} to {max(of):.2f} times what came on {n}." for (gpus, n), of in off.items()]
    runs = [rows.run("cost_model", gpus) for gpus in (2, 4)]
    try:
        runs.append(rows.run("decode", 8))
    except UserError:
        note.append("No run on eight GPUs is recorded: what is said of them still waits for it.")
    rows.table(["µs", "4 GPUs: two say", "it took", "8 GPUs: two say", "four say", "it took"], lines,
               " ".join([*note, rows.recorded_on(*runs), "bf16, in CUDA graphs."]))

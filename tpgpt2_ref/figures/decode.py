"""What a decode step is made of: its time on one, two and four GPUs, its floor, the ladder, the break-even; prefill."""
from __future__ import annotations

from ..config import FAMILY
from ..engine.ladder import LADDER
from ..notebook.palette import COLOURS, GREY
from ..notebook.style import show
from . import rows

BATCHES = (1, 8, 64)


def step_bytes(model: str, batch: int, context: int, ranks: int = 1, element: int = 2) -> float:
    """Bytes that one rank reads in a decode step: its share of the weights, and of the cache."""
    c = FAMILY[model]
    layer = 4 * c.n_embd**2 + 2 * c.n_embd * c.inner  # c_attn, c_proj, c_fc, c_proj
    cache = 2 * c.n_layer * batch * context * c.n_embd
    return element * (c.n_layer * layer + c.vocab_size * c.n_embd + cache) / ranks


def copy_gb_per_s() -> float:
    """What a large copy moves, read and written, on the recorded H200."""
    return max(r["copy_gb_per_s"] for r in rows.run("decode", 2).rows if r.get("copy_gb_per_s"))


def decode_by_tp() -> None:
    """Microseconds of a decode step of every model on one, two and four GPUs."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(BATCHES), figsize=(9, 3.5), sharey=True)
    for ax, batch in zip(axes, BATCHES):
        for tp, colour, shift in ((1, rows.BY_GPUS[1], -0.27), (2, rows.BY_GPUS[2], 0), (4, rows.BY_GPUS[4], 0.27)):
            us = [rows.best_step_us(model, tp, batch)[0] for model in rows.MODELS]
            places = [i + shift for i, t in enumerate(us) if t]
            ax.bar(places, [t for t in us if t], 0.27, color=colour, label=f"{tp} GPU{'s' * (tp > 1)}",
                   hatch={4: "///"}.get(tp), edgecolor=COLOURS["ground"][0], linewidth=0)
        ax.set(xticks=range(len(rows.MODELS)), xticklabels=[rows.NAMES[m] for m in rows.MODELS], yscale="log",
               title=f"batch {batch}")
    axes[0].set_ylabel("µs a decode step")
    axes[0].legend(loc="upper left")
    one, two, four = (rows.best_step_us("gpt2-xl", tp, 1)[0] for tp in (1, 2, 4))
    small, split = (rows.best_step_us("gpt2", tp, 1)[0] for tp in (1, 2))
    figure.suptitle(f"XL at batch 1: {one:,.0f}, {two:,.0f}, {four:,.0f} µs on one, two, four GPUs. Small: "
         f"{small:.0f}, then "
                    f"{split:.0f}", x=0.02, ha="left", fontsize=11)
    show(figure, f"Bars of decode step times by model, batch and number of GPUs, logarithmic. GPT-2 XL at batch 1 "
         f"takes {one:,.0f} "
         f"microseconds on one GPU, {two:,.0f} on two and {four:,.0f} on four; GPT-2 small {small:.0f} on one and "
         f"{split:.0f} "
         "on two.")
    rows.note(rows.recorded_on(*(rows.run("decode", n) for n in (1, 2, 4))) + " bf16, 128 to 256 tokens of "
         "context, sums by "
              "push, the last rung that was recorded. A missing bar was not measured.")


def decode_floor() -> None:
    """The least time a step can take, and what it took."""
    copy, lines, places = copy_gb_per_s(), [], []
    for batch in BATCHES:
        nbytes = step_bytes("gpt2", batch, 192)
        floor, (took, place, _) = nbytes / copy / 1e3, rows.best_step_us("gpt2", 1, batch)
        places.append(place)
        lines.append([batch, f"{nbytes / 1e6:,.0f} MB", f"{floor:.1f} µs", f"{took:.0f} µs", f"{floor / took:.0%}"])
    rows.table(["batch", "read in a step", "floor", "recorded", "of the floor's speed"], lines,
               f"GPT-2 small, bf16, 192 tokens in the cache; a large copy moves {copy:,.0f} GB/s. "
               + rows.recorded_on(*places))


def ladder(tp: int = 1) -> None:
    """Every rung of the ladder at three batches, and transformers beside it."""
    import matplotlib.pyplot as plt

    run = rows.last(max(tp, 2))
    order = ["generate", *(rung.name for rung in LADDER)]
    figure, axes = plt.subplots(1, len(BATCHES), figsize=(9, 3.7), sharey=True)
    best, floors = {}, {}
    for ax, batch in zip(axes, BATCHES):
        mine = [r for r in run.rows if (r["tp"], r["model"], r["prompt_len"], r["batch"]) == (tp, "gpt2", 128, batch)
                and r["rung"] in order and (tp == 1 or r["sum"] in ("push", "slots"))]
        mine.sort(key=lambda r: order.index(r["rung"]))
        names = [r["rung"] if r["engine"] == "tpgpt2" else r["engine"] for r in mine]
        values = [r["us_per_step_median"] for r in mine]
        ax.barh(names, values, color=[rows.SHADES[1] if r["engine"] == "tpgpt2" else GREY for r in mine])
        for y, value in enumerate(values):
            ax.text(value, y, f" {value:,.0f}", va="center", fontsize=8)
        if tp == 1:
            floors[batch] = step_bytes("gpt2", batch, 192) / copy_gb_per_s() / 1e3
            ax.axvline(floors[batch], color=COLOURS["ink"][0], linewidth=1, linestyle="--")
        best[batch] = (mine[-1]["us_per_step_median"],
                       next(r["us_per_step_median"] for r in mine if r["rung"] == "eager"))
        ax.set(xscale="log", title=f"batch {batch}", xlabel="µs a step", xlim=(30, 60000))
        ax.margins(y=0.02)
    axes[0].invert_yaxis()
    figure.suptitle(f"From the plain loop to the last rung: {best[1][1] / best[1][0]:.0f} times faster at batch 1 "
                    "(dashed: the floor)", x=0.02, ha="left", fontsize=11)
    show(figure, "Bars of step times by rung of the ladder, logarithmic. " + "; ".join(
        f"batch {b}: eager {e:,.0f} microseconds, last rung {t:,.0f}" for b, (t, e) in best.items()) + ".")
    far = ", ".join(f"{best[b][0] / floor:.1f} at batch {b}" for b, floor in floors.items())
    rows.note(rows.recorded_on(run) + f" GPT-2 small, bf16, TP={tp}."
              + (f" The last rung takes so many times the floor: {far}." if far else "")
              + ("" if rows.only(run.rows, tp=tp, rung="+clusters") else " No run of +clusters is recorded yet."))


def break_even() -> None:
    """What an all-reduce may cost before two GPUs are slower, and what it costs."""
    copy, paths, lines = copy_gb_per_s(), ("push", "one_shot", "nccl"), []
    for model in rows.MODELS:
        saved = step_bytes(model, 1, 192) / 2 / copy / 1e3
        allowed = saved / (2 * FAMILY[model].n_layer + 1)
        nbytes = FAMILY[model].n_embd * 2
        cost = {p: next(r["us_median"] for r in rows.sums(p) if r["bytes"] >= nbytes) for p in paths}
        lines.append([rows.NAMES[model], 2 * FAMILY[model].n_layer + 1, f"{allowed:.2f} µs",
                      *(f"{us:.1f} µs, {'pays' if us < allowed else 'does not pay'}" for us in cost.values())])
    rows.table(["model", "sums", "a sum may cost", *paths], lines, "Batch 1, 192 tokens in the cache, if both "
         "sides read at "
               f"{copy:,.0f} GB/s. Sums: " + rows.recorded_on(rows.run("collectives", 2)))


def prefill() -> None:
    """Wall and GPU time of 8 prompts of 1,000 tokens, launched one by one and from a graph, on one GPU and on two."""
    run, lines = rows.run("prefill", 2), []
    for r in run.rows:
        real = r["tp"] == 1 or r["sum"] not in ("none", "nccl")
        if real and (r["model"], r["batch"], r["prompt_len"]) == ("gpt2", 8, 1000):
            wall, busy = r["wall_us_median"], r["gpu_us_median"]
            lines.append([r["engine"] if r["engine"] != "tpgpt2" else r["rung"], r["tp"], f"{wall / 1e3:.2f} ms",
                          f"{busy / 1e3:.2f} ms", f"{wall / busy:.2f}"])
    rows.table(["how", "GPUs", "wall clock", "GPU", "wall / GPU"], sorted(lines, key=lambda x: (x[1], x[0])),
               "GPT-2 small, 8 prompts of 1,000 tokens. " + rows.recorded_on(run))

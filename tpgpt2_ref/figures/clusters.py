"""Two kernels a layer: what a wait costs, what fewer of them gain, and where the two kernels' microseconds go."""
from __future__ import annotations

from ..config import FAMILY
from ..errors import UserError
from ..notebook.palette import COMPUTING, GREY, WAITING
from ..notebook.style import show
from . import rows
from .decode import copy_gb_per_s, step_bytes

CONTEXT = 192  # tokens in the cache: a prompt of 128, half of 128 new ones


def kernels(layers: int, rung: str) -> int:
    """Kernels of a step on one GPU: five a layer, embedding, head and pick; or two a layer, and the head."""
    return 2 * layers + 1 if rung == "+clusters" else 5 * layers + 3


def floor_us(model: str) -> float:
    return step_bytes(model, 1, CONTEXT) / copy_gb_per_s() / 1e3


def wait_us(model: str) -> float:
    """What a recorded step of five kernels a layer takes above its floor, shared out over the ends of its kernels."""
    return (rows.step_us(model, 1, 1)[0] - floor_us(model)) / (kernels(FAMILY[model].n_layer, "+pdl") - 1)


def layer_kernels() -> None:
    """What each of a layer's five kernels reads, how long memory needs for that, and a wait beside it."""
    c, copy = FAMILY["gpt2"], copy_gb_per_s()
    reads = {"LayerNorm, c_attn": 3 * c.n_embd**2, "attention": 2 * CONTEXT * c.n_embd, "c_proj": c.n_embd**2,
             "LayerNorm, c_fc, GELU": c.n_embd * c.inner, "c_proj of the MLP": c.inner * c.n_embd}
    wait, lines = wait_us("gpt2"), []
    for name, numbers in reads.items():
        us = 2 * numbers / copy / 1e3
        lines.append([name, f"{2 * numbers / 1e6:.2f} MB", f"{us:.2f} µs", f"{wait:.2f} µs", f"{wait / us:.1f}"])
    rows.table(["kernel", "reads", "memory needs", "a wait", "times"], lines,
               f"GPT-2 small in bf16, batch 1, {CONTEXT} tokens in the cache; memory moves {copy:,.0f} GB/s. A wait: a "
               f"recorded step less its floor, over {kernels(c.n_layer, '+pdl') - 1} ends of kernels. "
               + rows.recorded_on(rows.step_us("gpt2", 1, 1)[1]))


def step_waits() -> None:
    """A step by the number of its kernels: five a layer; two a layer, if a wait cost the same, and as recorded."""
    lines, places = [], []
    for model in rows.MODELS:
        layers, few = FAMILY[model].n_layer, kernels(FAMILY[model].n_layer, "+clusters")
        before, place = rows.step_us(model, 1, 1)
        after, other = rows.both_us(model, 1, 1)[1:]
        places += filter(None, (place, other))
        lines.append([rows.NAMES[model], kernels(layers, "+pdl"), f"{before:,.0f} µs", f"{wait_us(model):.2f} µs", few,
                      f"{floor_us(model) + (few - 1) * wait_us(model):,.0f} µs",
                      f"{after:,.0f} µs" if after else "not yet"])
    rows.table(["model", "kernels, +pdl", "took", "a wait", "kernels, +clusters", "at that price", "recorded"], lines,
               "Batch 1, one GPU, bf16, prompt 128. At that price: the floor, and fewer waits that cost as much. "
               + rows.recorded_on(*places))


def cluster_gain() -> None:
    """Recorded steps of two kernels a layer over those of five, by batch; a panel for each number of GPUs."""
    import matplotlib.pyplot as plt

    found, places = {}, []
    for tp in (1, 2, 4):
        for model in rows.MODELS:
            for batch in (1, 2, 4):
                before, after, place = rows.both_us(model, tp, batch)
                if place:
                    found.setdefault(tp, {}).setdefault(model, {})[batch] = after / before
                    places.append(place)
    if not found:
        return rows.note("No run of the rung +clusters is recorded yet. Here its steps will stand beside +pdl's.")
    figure, axes = plt.subplots(1, len(found), figsize=(9, 3.4), sharey=True, squeeze=False)
    for ax, (tp, models) in zip(axes[0], found.items()):
        for (model, by), mark, dash in zip(models.items(), "osD^", ("-", "--", ":", "-.")):
            ax.plot(list(by), list(by.values()), mark, linestyle=dash, color=COMPUTING, label=rows.NAMES[model])
        ax.axhline(1, color=GREY, linewidth=1)
        ax.set(xscale="log", xticks=(1, 2, 4), xticklabels=("1", "2", "4"), xlabel="batch",
               title=f"{tp} GPU{'s' * (tp > 1)}")
        ax.minorticks_off()
    axes[0][0].set_ylabel("+clusters over +pdl, time")
    axes[0][0].legend()
    ratios = {(tp, model, batch): ratio for tp, models in found.items() for model, by in models.items()
              for batch, ratio in by.items()}
    (tp, model, batch), best = min(ratios.items(), key=lambda item: item[1])
    worse = sum(ratio > 1 for ratio in ratios.values())
    said = (f"At best {best:.2f} of the time (GPT-2 {rows.NAMES[model]}, batch {batch}, {tp} GPU{'s' * (tp > 1)}); "
            f"slower in {worse} of {len(ratios)}")
    figure.suptitle(said, x=0.02, ha="left", fontsize=11)
    show(figure, f"Time of a step of two kernels a layer over one of five, by batch, a line a model. {said}.")
    rows.note(rows.recorded_on(*places) + " bf16, prompt 128. Below the line two kernels a layer are faster. "
              "For more than 4 rows the rung takes the other kernels.")


def cluster_lanes() -> None:
    """When a kernel's blocks come to each place in it: a panel for each of a layer's two kernels, a lane a place."""
    import matplotlib.pyplot as plt

    try:
        run = rows.run("phases", 1)
    except UserError:
        return rows.note("No run with a clock in the kernels is recorded yet. Here their time will stand.")
    panels = {name: sorted(rows.only(run.rows, kernel=name), key=lambda r: r["median_ns"])
              for name in ("attention", "mlp")}
    most = max(map(len, panels.values()))
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 1 + 0.24 * most), sharex=True)
    said = []
    for ax, (name, mine) in zip(axes, panels.items()):
        stretches = list(zip(mine, mine[1:]))
        for y, (before, r) in enumerate(stretches):
            start, end = before["median_ns"] / 1e3, r["median_ns"] / 1e3
            ax.broken_barh([(start, end - start)], (y - .35, .7), color=colour(r["place"]))
            ax.plot([r["min_ns"] / 1e3, r["max_ns"] / 1e3], [y, y], color=GREY, linewidth=1)
        longest, place = max((r["median_ns"] - before["median_ns"], r["place"]) for before, r in stretches)
        total = mine[-1]["median_ns"] / 1e3
        said.append(f"{name}: {total:.1f} µs, the longest stretch {longest / 1e3:.1f}: {place}")
        ax.set(yticks=range(len(stretches)), yticklabels=[r["place"] for _, r in stretches], xlabel="µs",
               ylim=(len(stretches) - .4, -.6), title=f"{name}: {total:.1f} µs; longest: {longest / 1e3:.1f}, {place}")
        ax.grid(False)
    show(figure, "Lanes of the two kernels of a layer, a lane for each place in the source. " + "; ".join(said) + ".")
    rows.note(rows.recorded_on(run) + " A bar ends when the median block is there; the line goes from the first "
              "block to the last. Yellow: waiting for others.")


def colour(place: str) -> str:
    """Of the stretch that ends at a place."""
    return WAITING if "wait" in place else COMPUTING

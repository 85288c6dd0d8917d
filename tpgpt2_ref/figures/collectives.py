"""Diagram 3 and the page on push: what an all-reduce costs by its size, and by whom."""
from __future__ import annotations

from ..notebook.palette import GREY, MOVING
from ..notebook.style import show
from . import rows

PATHS = {"nccl": (GREY, "--"), "two_shot": (rows.SHADES[1], ":"), "one_shot": (rows.SHADES[2], "-"),
         "push": (MOVING, "-")}


def all_reduce_by_size(worlds: tuple[int, ...] = (2, 4)) -> None:
    """Microseconds of an all-reduce in a CUDA graph, by bytes, for each algorithm; the sizes that matter marked."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(worlds), figsize=(9, 3.9), sharey=True)
    for ax, world in zip(axes, worlds):
        for path, (colour, dash) in PATHS.items():
            mine = [r for r in rows.sums(path, world) if r["bytes"] <= 2**25]
            ax.plot([r["bytes"] for r in mine], [r["us_median"] for r in mine], color=colour, linestyle=dash,
                    label=path)
            ax.fill_between([r["bytes"] for r in mine], [r["us_p10"] for r in mine], [r["us_p90"] for r in mine],
                            color=colour, alpha=0.18, linewidth=0)
        for nbytes, name in rows.MARKS.items():
            ax.axvline(nbytes, color=GREY, linewidth=0.8, linestyle=":")
            ax.text(nbytes, 210, f" {name}", fontsize=8, rotation=90, va="top")
        ax.set(xscale="log", yscale="log", ylim=(1.2, 250), xlabel="bytes of one rank's input", title=f"{world} GPUs")
    axes[0].set_ylabel("µs a call")
    axes[1].legend(loc="lower right")
    us, flat = {p: rows.sum_us(p) for p in PATHS}, flat_until("push")
    best = min(us, key=us.get)
    figure.suptitle(f"One token's sum: {us[best]:.1f} µs by {best}, {us['nccl']:.1f} µs by NCCL", x=0.02, ha="left",
                    fontsize=12)
    show(figure, "All-reduce time against bytes on two and four H200, in CUDA graphs, both axes logarithmic. "
         "Each curve is "
         "flat, then rises. At one token, 1,536 bytes, on two GPUs: " + ", ".join(f"{p} {t:.1f}" for p, t in us.items())
         + f" microseconds. Push stays within twice its floor up to {flat:,} bytes.")
    rows.note(rows.recorded_on(*(rows.run("collectives", n) for n in worlds)) + " Bands: 10th to 90th percentile.")


def flat_until(path: str, gpus: int = 2) -> int:
    """Bytes up to which a call takes no more than twice its shortest."""
    found = rows.sums(path, gpus)
    floor = min(r["us_median"] for r in found)
    return max(r["bytes"] for r in found if r["us_median"] <= 2 * floor)


def push_against_nccl() -> None:
    """How many times faster than NCCL each algorithm is, by size, on two GPUs."""
    import matplotlib.pyplot as plt

    nccl = {r["bytes"]: r["us_median"] for r in rows.sums("nccl")}
    figure, ax = plt.subplots(figsize=(8, 3.6))
    for path in ("one_shot", "two_shot", "push"):
        mine = [(r["bytes"], nccl[r["bytes"]] / r["us_median"]) for r in rows.sums(path) if r["bytes"] in nccl]
        ax.plot(*zip(*mine), color=PATHS[path][0], linestyle=PATHS[path][1], label=path)
    ax.axhline(1, color=GREY, linewidth=1)
    for nbytes, name in rows.MARKS.items():
        ax.axvline(nbytes, color=GREY, linewidth=0.8, linestyle=":")
        ax.annotate(f" {name}", (nbytes, 0.42), xycoords=("data", "axes fraction"), fontsize=8, rotation=90,
                    va="bottom")
    factor = rows.sum_us("nccl") / rows.sum_us("push")
    ax.set(xscale="log", xlabel="bytes of one rank's input", ylabel="times NCCL's speed", ylim=(0, None),
           title=f"Push sums one token {factor:.1f} times as fast as NCCL")
    ax.legend()
    show(figure, f"NCCL's time over each algorithm's time, against bytes, two H200 in CUDA graphs. Push is "
         f"{factor:.1f} "
         "times as fast at one token; the advantage shrinks as bytes grow, towards one.")
    rows.note(rows.recorded_on(rows.run("collectives", 2)))

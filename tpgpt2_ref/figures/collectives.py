"""Diagram 3 and the page on push: what an all-reduce costs by its size, and by whom."""
from __future__ import annotations

from ..notebook.palette import GREY, MOVING
from ..notebook.style import show
from . import rows

PATHS = {"nccl": (GREY, "--"), "two_shot": (rows.SHADES[1], ":"), "one_shot": (rows.SHADES[2], "-"),
         "push": (MOVING, "-"), "two_shot_push": (MOVING, "--")}


def all_reduce_by_size(worlds: tuple[int, ...] = (2, 4)) -> None:
    """Microseconds of an all-reduce in a CUDA graph, by bytes, for each algorithm; the sizes that matter marked."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(worlds), figsize=(9, 3.9), sharey=True)
    for ax, world in zip(axes, worlds):
        for path, (colour, dash) in PATHS.items():
            mine = [r for r in rows.sums(path, world) if r["bytes"] <= 2**25]
            if not mine:
                continue  # not recorded on this machine
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
    us = {p: rows.sum_us(p) for p in PATHS if rows.sums(p)}
    flat = flat_until("push")
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


def two_shots(worlds: tuple[int, ...] = (2, 4), nbytes: int = 2**20) -> None:
    """Bus bandwidth by size of push, two-shot push and the best of the others, with what a link carries one way."""
    import matplotlib.pyplot as plt

    if missing := [n for n in worlds if not rows.sums("two_shot_push", n)]:
        rows.note(f"Two-shot push is not recorded on {' and '.join(map(str, missing))} GPUs yet.")
    worlds = tuple(n for n in worlds if n not in missing)
    if not worlds:
        return
    from ..bench.dial import LIMITS

    one_way = next(x.one_way_gb_per_s for x in LIMITS if x.name.startswith("NVLink 4"))
    figure, axes = plt.subplots(1, len(worlds), figsize=(4.5 * len(worlds), 3.9), sharey=True, squeeze=False)
    axes, found = axes[0], {}
    for ax, world in zip(axes, worlds):
        by_path = {p: {r["bytes"]: r for r in rows.sums(p, world) if 2**16 <= r["bytes"] <= 2**26} for p in PATHS}
        others = [by_path[p] for p in ("nccl", "one_shot", "two_shot")]
        best = {n: min((o[n] for o in others if n in o), key=lambda r: r["us_median"]) for n in others[0]}
        found[world] = best[nbytes], by_path["push"][nbytes], by_path["two_shot_push"][nbytes]
        for label, mine, colour, dash in (("best with barriers, or NCCL", best, GREY, "-"),
                                          ("push", by_path["push"], *PATHS["push"]),
                                          ("two-shot push", by_path["two_shot_push"], *PATHS["two_shot_push"])):
            sizes = sorted(mine)
            ax.plot(sizes, [mine[n]["busbw_gb_per_s"] for n in sizes], color=colour, linestyle=dash, label=label)
        ax.axhline(one_way, color=GREY, linewidth=0.8, linestyle=":")
        ax.set(xscale="log", ylim=(0, None), xlabel="bytes of one rank's input", title=f"{world} GPUs")
    axes[0].text(2**16, one_way - 6, f"{one_way:.0f} GB/s, the links one way", fontsize=8, va="top")
    axes[0].set_ylabel("bus bandwidth, GB/s")
    axes[-1].legend(loc="upper left")
    said = [f"{n} GPUs: {two['us_median']:.1f} µs by two-shot push, {one['us_median']:.1f} by push, "
            f"{other['us_median']:.1f} by {other['path']}" for n, (other, one, two) in found.items()]
    figure.suptitle(f"{nbytes // 2**20} MiB on {said[-1]}", x=0.02, ha="left", fontsize=12)
    show(figure, "Bus bandwidth against bytes in CUDA graphs. 1 MiB on " + "; on ".join(said) + ".")
    rows.note(rows.recorded_on(*(rows.run("collectives", n) for n in worlds)))


def least_us(nbytes: int = 2**20, gpus: int = 2) -> None:
    """What a sum can't be faster than on these links, in words: its bytes at their best rate, and an empty call."""
    recorded = rows.only(rows.run("collectives", gpus).rows, op="all_reduce", world=gpus, graph=True)
    rate = max(r["busbw_gb_per_s"] for r in recorded)
    empty, took = min(r["us_median"] for r in rows.sums("push", gpus)), rows.sum_us("push", nbytes, gpus=gpus)
    wire = 2 * (gpus - 1) / gpus * nbytes / rate / 1e3
    rows.note(f"{nbytes:,} bytes on {gpus} GPUs: at {rate:.0f} GB/s, the best bus bandwidth of all recorded sums, they "
              f"take {wire:.1f} µs; a call that carries next to nothing takes {empty:.1f} µs; together "
              f"{wire + empty:.1f}. Push took {took:.1f} µs.")

"""Diagram 6: what a link carries one way, how much of it a collective uses, and when a faster one changes nothing."""
from __future__ import annotations

from statistics import median

from ..notebook.palette import GREY, MOVING
from ..notebook.style import show
from ..recorded import results
from . import rows

LINKS = {"nccl": ("NVLink", rows.SHADES[2]), "nccl/host-memory": ("host memory", rows.SHADES[1]),
         "nccl/sockets": ("sockets", rows.SHADES[0])}


def one_way() -> None:
    """Each link's GB/s in one direction, and the diagram's figure beside it."""
    import matplotlib.pyplot as plt

    from ..bench.dial import LIMITS

    figure, ax = plt.subplots(figsize=(7.5, 2.9))
    for i, limit in enumerate(LIMITS):
        ax.barh(i, limit.one_way_gb_per_s, color=rows.SHADES[1], height=0.55)
        if limit.diagram_gb_per_s:
            ax.plot([limit.diagram_gb_per_s] * 2, [i - 0.4, i + 0.4], color="#1f2328", linewidth=2.5)
        ax.text(limit.one_way_gb_per_s * 1.12, i, f"{limit.one_way_gb_per_s:.3g}", va="center", fontsize=9)
    twice = [limit for limit in LIMITS if limit.diagram_gb_per_s and limit.diagram_gb_per_s > limit.one_way_gb_per_s]
    ax.set(xscale="log", xlim=(5, 2500), yticks=range(len(LIMITS)), yticklabels=[limit.name for limit in LIMITS],
           xlabel="GB/s one way (the dark mark: the diagram's figure)",
           title=f"{len(twice)} of the diagram's three figures count both directions")
    ax.invert_yaxis()
    show(figure, "Bars: GB/s one way of each link. " + "; ".join(
        f"{limit.name} {limit.one_way_gb_per_s:.3g}" + (f", the diagram says {limit.diagram_gb_per_s:.3g}"
                                                      if limit.diagram_gb_per_s else "") for limit in LIMITS) + ".")


def utilization() -> None:
    """NCCL's bus bandwidth over the link's one-way bandwidth, by bytes."""
    import matplotlib.pyplot as plt

    from ..bench.dial import LIMITS

    limit = next(x.one_way_gb_per_s for x in LIMITS if x.name.startswith("NVLink 4"))
    figure, ax = plt.subplots(figsize=(7.5, 3.4))
    best = {}
    for world, colour in ((2, rows.BY_GPUS[2]), (4, rows.BY_GPUS[4])):
        mine = rows.sums("nccl", world)
        ax.plot([r["bytes"] for r in mine], [r["busbw_gb_per_s"] for r in mine], color=colour,
                linestyle=rows.GPU_DASHES[world], label=f"{world} GPUs")
        best[world] = max(r["busbw_gb_per_s"] for r in mine)
    ax.axhline(limit, color=GREY, linestyle="--")
    ax.text(300, limit * 0.97, f"{limit:.0f} GB/s, the link one way", fontsize=9, va="top")
    for nbytes, name in rows.MARKS.items():
        ax.axvline(nbytes, color=GREY, linewidth=0.8, linestyle=":")
        ax.annotate(f" {name}", (nbytes, 0.03), xycoords=("data", "axes fraction"), fontsize=8, rotation=90)
    ax.set(xscale="log", xlabel="bytes of one rank's input", ylabel="bus bandwidth, GB/s",
           title="NCCL at its best: " + ", ".join(f"{n} GPUs reach {100 * gb / limit:.0f} %" for n, gb in best.items())
           + f" of the link's {limit:.0f} GB/s")
    ax.legend(loc="center left")
    show(figure, f"NCCL's bus bandwidth against bytes in CUDA graphs. It rises from nearly nothing to "
         f"{best[2]:.0f} GB/s on two "
         f"GPUs and {best[4]:.0f} on four, under the link's {limit:.0f} GB/s one way. A token's sum uses almost none.")
    rows.note(rows.recorded_on(rows.run("collectives", 2), rows.run("collectives", 4)))


def by_link() -> None:
    """The same all-reduce over three links of one machine, eager and in a graph."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7.5, 3.6))
    for path, (name, colour) in LINKS.items():
        mine = [r for r in rows.sums(path) if r["bytes"] <= 2**26]
        ax.plot([r["bytes"] for r in mine], [r["us_median"] for r in mine], color=colour, label=name)
    for nbytes, name in rows.MARKS.items():
        ax.axvline(nbytes, color=GREY, linewidth=0.8, linestyle=":")
        ax.annotate(f" {name}", (nbytes, 0.62), xycoords=("data", "axes fraction"), fontsize=8, rotation=90, va="top")
    small, large = (rows.slowdown("nccl/host-memory", n) for n in (rows.TOKEN, 2**24))
    ax.set(xscale="log", yscale="log", xlabel="bytes of one rank's input", ylabel="µs a call, in a CUDA graph",
           title=f"Without NVLink a token's sum takes {small:.1f} times as long, 16 MiB {large:.0f} times")
    ax.legend(loc="upper left")
    show(figure, f"NCCL's all-reduce over NVLink, host memory and sockets, against bytes. On the left the curves "
         f"are flat and "
         f"near each other; on the right they part. Host memory takes {small:.1f} times NVLink's time for a token and "
         f"{large:.0f} times for 16 MiB.")
    rows.note(rows.recorded_on(rows.run("collectives", 2)))


def two_hosts() -> None:
    """gloo over a cable of 1 Gbit/s between two network namespaces, and over the loopback: the best tenth, the band."""
    import matplotlib.pyplot as plt

    runs = [r for r in results.recorded("collectives") if any(x["path"] == "gloo/two-hosts" for x in r.rows)]
    run = max(runs, key=lambda r: r.recorded_at)
    figure, ax = plt.subplots(figsize=(7.5, 3.4))
    for path, name, colour in (("gloo", "loopback", GREY), ("gloo/two-hosts", "the cable", MOVING)):
        mine = sorted(rows.only(run.rows, op="all_reduce", path=path, world=2), key=lambda r: r["bytes"])
        sizes = [r["bytes"] for r in mine]
        ax.plot(sizes, [r["us_p10"] for r in mine], "o-", color=colour, label=name)
        ax.fill_between(sizes, [r["us_p10"] for r in mine], [r["us_p90"] for r in mine], color=colour, alpha=0.18,
                        linewidth=0)
    cable = [n / 125 for n in sizes]  # microseconds of n bytes at 0.125 GB/s
    ax.plot(sizes, cable, color=MOVING, linestyle="--", linewidth=1, label="1 Gbit/s")
    floor = median(r["us_p10"] for r in mine if r["bytes"] <= 1 << 16)
    top = mine[-1]["busbw_gb_per_s"]
    ax.set(xscale="log", yscale="log", ylim=(100, None), xlabel="bytes of one rank's input", ylabel="µs a call",
           title=f"About {floor:.0f} µs up to 64 KiB at best; then the cable: {top:.3f} of 0.125 GB/s")
    ax.legend()
    show(figure, "Time of gloo's all-reduce against bytes, over the loopback and over a cable of 0.125 GB/s one way; "
         "line: the fastest tenth, band: up to the slowest. The cable's line is flat near "
         f"{floor:.0f} microseconds up to 64 KiB, then follows the cable's limit, of which it reaches {top:.3f} GB/s.")
    rows.note(rows.recorded_on(run) + " Line: the fastest tenth of 30 samples; band: up to the slowest. Two ranks, and "
              "the kernel that shapes the cable, share two cores, and small calls come in two groups, a quarter of a "
              "millisecond and one to four. Why is not known.")

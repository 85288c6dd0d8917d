"""Diagram 5 as one picture: time and error of one attention through every kernel, the missing ones in grey."""
from __future__ import annotations

from ..attention.matrix import MATRIX
from .palette import COLOURS, GREY

PHASES = {phase: COLOURS[phase][0] for phase in ("prefill", "decode")}


def draw_kernels(axes, rows: list[dict], missing: dict[str, str], title: str) -> None:
    """Fill two axes side by side: microseconds with their spread, and the error against fp64.

    rows     of `bench_attention.sweep`, one shape a phase
    missing  {backend: why it does not run}, of the same machine
    title    names that machine
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    times, errors = axes
    names = list(MATRIX)[::-1]
    for phase, colour in PHASES.items():
        shift = 0.2 if phase == "prefill" else -0.2
        of_phase = [r for r in rows if r["phase"] == phase]
        y = [names.index(r["backend"]) + shift for r in of_phase]
        us = [r["us_median"] for r in of_phase]
        spread = [[r["us_median"] - r["us_p10"] for r in of_phase], [r["us_p90"] - r["us_median"] for r in of_phase]]
        times.barh(y, us, 0.38, color=colour, label=phase, xerr=spread, error_kw={"lw": 0.8, "capsize": 2})
        errors.plot([max(r["error_vs_fp64"], 1e-9) for r in of_phase], y, "o", color=colour)
        for place, r in zip(y, of_phase, strict=True):
            times.annotate(f"{r['us_median']:,.0f}", (r["us_p90"], place), xytext=(4, 0), textcoords="offset points",
                           va="center", fontsize=7)
    for name, reason in missing.items():
        times.annotate(reason if len(reason) < 46 else reason[:44] + " …", (0.01, names.index(name)), color=GREY,
                       xycoords=("axes fraction", "data"), va="center", fontsize=7)
    times.set(xscale="log", xlabel="microseconds a call", title=title, ylim=(-0.6, len(names) - 0.4))
    times.xaxis.set_major_formatter("{x:,.0f}")
    times.xaxis.set_minor_formatter(NullFormatter())
    times.set_yticks(range(len(names)), names)
    for label, name in zip(times.get_yticklabels(), names, strict=True):
        label.set_color(GREY if name in missing else COLOURS["ink"][0])
    times.margins(x=0.25)
    low, high = times.get_xlim()
    times.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 1000 * low else (1,)))
    errors.set(xscale="log", xlim=(1e-8, 1e-1), xlabel="error against fp64", ylim=times.get_ylim())
    errors.set_yticks(range(len(names)), [""] * len(names))
    if rows:
        times.legend(loc="upper right")

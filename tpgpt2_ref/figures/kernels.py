"""Diagram 5: the support matrix from the selector's own data, and how far the kernels' results lie from the truth."""
from __future__ import annotations

from ..attention.matrix import MATRIX, listed
from ..notebook.style import show
from . import rows


def support_matrix() -> None:
    """One row a kernel: what it takes."""
    lines = []
    for name, row in MATRIX.items():
        lines.append([name, ", ".join(row.platforms), row.sm or "any",
                      "any" if row.head_sizes is None else listed(row.head_sizes),
                      ", ".join(d.replace("float", "fp").replace("bfp", "bf") for d in row.dtypes),
                      "any" if row.block_step == 1 else f"multiples of {row.block_step}"])
    rows.table(["kernel", "platform", "SM", "head sizes", "dtypes", "page"], lines)


def error_budget() -> None:
    """Relative error against fp64 of each kernel, by dtype."""
    import matplotlib.pyplot as plt

    run = rows.run("attention", 1)
    found = [r for r in run.rows if r.get("error_vs_fp64")]
    names = [n for n in MATRIX if any(r["backend"] == n for r in found)][::-1]
    figure, ax = plt.subplots(figsize=(7.5, 0.9 + 0.32 * len(names)))
    for dtype, colour in (("float16", rows.SHADES[2]), ("bfloat16", rows.SHADES[0])):
        mine = [r for r in found if r["dtype"] == dtype]
        ax.plot([r["error_vs_fp64"] for r in mine], [names.index(r["backend"]) for r in mine], "o", color=colour,
                label=dtype)
    worst = {d: max(r["error_vs_fp64"] for r in found if r["dtype"] == d) for d in {r["dtype"] for r in found}}
    least = {d: min(r["error_vs_fp64"] for r in found if r["dtype"] == d) for d in worst}
    ax.set(xscale="log", yticks=range(len(names)), yticklabels=names, xlabel="error against fp64, ‖out − ref‖ / ‖ref‖",
           title="The format decides: " + ", ".join(f"{d} errs up to {e:.1e}" for d, e in sorted(worst.items())))
    figure.legend(loc="outside lower right", ncols=2)
    show(figure, "Error against fp64 by kernel, one dot a recorded case. " + "; ".join(
        f"{d} from {least[d]:.1e} to {worst[d]:.1e}" for d in sorted(worst)) + ".")
    rows.note(rows.recorded_on(run))

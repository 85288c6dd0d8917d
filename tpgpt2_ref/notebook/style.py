"""One look for every figure of the book: colours, sizes, SVG output."""
from __future__ import annotations

RANK_COLOURS = ("#2f6fb0", "#d9772b", "#3f9b57", "#a5579e", "#8a8a2f", "#4aa3a2", "#b34a4a", "#6b6b6b")
GREY = "#9a9a9a"  # what is missing, or was measured on another machine


def style() -> None:
    """Set matplotlib up for a chapter; call it in the first cell."""
    import matplotlib as mpl
    from cycler import cycler
    from IPython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    mpl.rcParams.update({
        "figure.figsize": (7.0, 3.6), "figure.constrained_layout.use": True, "figure.facecolor": "white",
        "axes.prop_cycle": cycler(color=RANK_COLOURS), "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.axisbelow": True,
        "axes.titlesize": 11, "axes.titlelocation": "left", "axes.labelsize": 10, "font.size": 10,
        "legend.frameon": False, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9,
        "lines.linewidth": 1.8, "lines.markersize": 4.5, "svg.hashsalt": "tpgpt2",
    })
    if get_ipython() is not None:
        set_matplotlib_formats("svg")

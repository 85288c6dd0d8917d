"""One look for every figure of the book: one palette, words instead of a path as its description, light and dark,
and a second size for phones. Plain `plt.show()` does all of it once `style()` was called; `show` adds the words.
"""
from __future__ import annotations

import re
import textwrap
from contextlib import contextmanager
from hashlib import sha1
from html import escape
from io import StringIO

from .palette import COLOURS, GREY, RANK_COLOURS, css

__all__ = ["GREY", "RANK_COLOURS", "figure_html", "show", "style"]

PHONE = 4.6  # inches: what 330 points of text at their own size need
CSS = css(".tp-plot") + (
    ".tp-plot{margin:0;container-type:inline-size}.tp-plot svg{width:100%;height:auto;display:block}"
    ".tp-plot text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif!important}"
    ".tp-plot .tp-phone{display:none}"
    "@container (max-width:560px){.tp-plot .tp-wide{display:none}.tp-plot .tp-phone{display:block}}")


def style() -> None:
    """Set matplotlib up for a chapter; call it in the first cell."""
    import matplotlib as mpl
    from cycler import cycler
    from IPython import get_ipython
    from matplotlib.figure import Figure
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    ink, quiet, line, faint = (COLOURS[name][0] for name in ("ink", "quiet", "line", "faint"))
    mpl.rcParams.update({
        "figure.figsize": (7.0, 3.6), "figure.constrained_layout.use": True, "figure.facecolor": "none",
        "axes.facecolor": "none", "savefig.facecolor": "none", "axes.prop_cycle": cycler(color=RANK_COLOURS),
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": faint,
        "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.edgecolor": line, "text.color": ink,
        "axes.labelcolor": quiet, "axes.titlecolor": ink, "xtick.color": line, "ytick.color": line,
        "xtick.labelcolor": quiet, "ytick.labelcolor": quiet, "axes.titlesize": 11, "axes.titlelocation": "left",
        "axes.labelsize": 10, "font.size": 10, "legend.frameon": False, "legend.fontsize": 9, "xtick.labelsize": 9,
        "ytick.labelsize": 9, "lines.linewidth": 1.8, "lines.markersize": 4.5, "svg.fonttype": "none",
    })
    if (shell := get_ipython()) is not None:
        set_matplotlib_formats()  # no picture without words: what is shown is what `figure_html` makes
        shell.display_formatter.formatters["text/html"].for_type(Figure, figure_html)


def show(figure, alt: str, phone=None) -> None:
    """Display a figure whose `alt` says in words what it shows: its finding, axes and most telling points.

    phone  another figure, about 4.6 inches wide, for a narrow page; without it this one is drawn again at that width,
           axes that stand in one row one below the other
    """
    import matplotlib.pyplot as plt
    from IPython.display import HTML, display

    for each in filter(None, (figure, phone)):
        plt.close(each)  # otherwise the cell's end shows it a second time
    display(HTML(figure_html(figure, alt, phone)))


def figure_html(figure, alt: str = "", phone=None) -> str:
    """One figure as HTML with its two sizes inline, their colours the page's own."""
    alt = alt or described(figure)
    with fitted(figure):
        wide = svg(figure, alt, "tp-wide")
    if phone is not None:
        with fitted(phone):
            narrow = svg(phone, alt, "tp-phone")
    elif figure.get_figwidth() <= PHONE:
        narrow, wide = "", wide.replace("tp-wide", "tp-any")
    else:
        with narrowed(figure), fitted(figure):
            narrow = svg(figure, alt, "tp-phone")
    return f'<figure class="tp-plot"><style>{CSS}</style>{wide}{narrow}</figure>'


def svg(figure, alt: str, name: str) -> str:
    """The figure as inline SVG: palette colours become variables, ids the figure's own."""
    import matplotlib as mpl

    out = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name + alt}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.S)
    key = "tp" + sha1((name + alt).encode()).hexdigest()[:8]
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # ids that nothing refers to, the same in every figure
    text = re.sub(r'(\bid="|#)([mpch][0-9a-f]{10})\b', rf"\1{key}\2", text)
    for variable, (light, _, _) in COLOURS.items():
        text = text.replace(light, f"var(--tp-{variable})")
    text = text.replace("#000000", "var(--tp-ink)")
    alt = escape(alt, quote=True)
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
                  rf'<svg class="{name}" viewBox="\1" role="img" aria-label="{alt}" '
                  r'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">', text, count=1)


def described(figure) -> str:
    """What a figure says of itself: titles, axes, and the names of what is drawn."""
    said = [figure.get_suptitle()]
    for ax in figure.axes:
        names = [label for label in ax.get_legend_handles_labels()[1] if label]
        said += [ax.get_title(loc="left") or ax.get_title(), ax.get_xlabel() and f"Across: {ax.get_xlabel()}",
                 ax.get_ylabel() and f"Up: {ax.get_ylabel()}", names and f"Shown: {', '.join(names)}"]
    return ". ".join(dict.fromkeys(" ".join(str(s).split()) for s in said if s)) or "A figure without a title"


@contextmanager
def fitted(figure):
    """Titles and labels broken into lines where they would leave the figure; afterwards as they were."""
    figure.draw_without_rendering()  # lays the axes out
    right, before = figure.bbox.width * 0.99, {}
    texts = [(figure._suptitle, figure.bbox.width * 0.96)] if figure.get_suptitle() else []
    for ax in figure.axes:
        box = ax.get_window_extent()
        titles = [t for t in (ax.title, ax._left_title, ax._right_title) if t.get_text()]
        texts += [(title, right - box.x0) for title in titles]
        texts += [(ax.xaxis.label, 2 * min(right - (box.x0 + box.x1) / 2, (box.x0 + box.x1) / 2))]
        texts += [(ax.yaxis.label, box.height)]
    for text, room in texts:
        box = text.get_window_extent()
        long, words = max(box.width, box.height), text.get_text()
        if words and long > room:
            before[text] = words
            text.set_text(textwrap.fill(words, max(8, int(0.9 * len(words) * room / long))))
    try:
        yield
    finally:
        for text, words in before.items():
            text.set_text(words)


@contextmanager
def narrowed(figure):
    """The figure at a phone's width, axes of one row one below the other; afterwards as it was."""
    from matplotlib.gridspec import GridSpec

    size, specs = figure.get_size_inches().copy(), {ax: ax.get_subplotspec() for ax in figure.axes}
    placed = [spec for spec in specs.values() if spec is not None]
    row = len(placed) > 1 and len({spec.get_gridspec() for spec in placed}) == 1 and all(
        spec.get_gridspec().nrows == 1 for spec in placed)
    hidden = []
    try:
        if row:
            grid = GridSpec(len(placed), 1, figure=figure)
            for i, ax in enumerate(ax for ax, spec in specs.items() if spec is not None):
                ax.set_subplotspec(grid[i])
                if not ax.yaxis.get_tick_params().get("labelleft", True):  # a neighbour's labels stood for it
                    hidden.append((ax, ax.get_ylabel()))
                    ax.tick_params(labelleft=True)
                    ax.set_ylabel(ax.get_ylabel() or figure.axes[0].get_ylabel())
        figure.set_size_inches(PHONE, size[1] * (0.85 * len(placed) if row else 1))
        yield
    finally:
        for ax, spec in specs.items():
            if spec is not None:
                ax.set_subplotspec(spec)
        for ax, label in hidden:
            ax.tick_params(labelleft=False)
            ax.set_ylabel(label)
        figure.set_size_inches(size)

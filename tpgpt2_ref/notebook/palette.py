"""Every colour of the book, in light and in dark. One colour has one meaning, and this is where it gets it.

Figures of matplotlib are drawn in the light values, pictures in CSS variables (`var(--tp-rank-0)`) that `css` declares.
"""
from __future__ import annotations

# name: (light, dark, what it stands for). Ranks leave red and green to the verdicts.
COLOURS = {
    "rank-0": ("#2f6fb0", "#6aaaf0", "rank 0"),
    "rank-1": ("#d9772b", "#f09a50", "rank 1"),
    "rank-2": ("#1f9e9e", "#45c4c4", "rank 2"),
    "rank-3": ("#8a5fc0", "#b492e6", "rank 3"),
    "rank-4": ("#7f7f22", "#bcbc55", "rank 4"),
    "rank-5": ("#4f9fd0", "#8fcdf2", "rank 5"),
    "rank-6": ("#3d4f9f", "#8c9cec", "rank 6"),
    "rank-7": ("#a3789a", "#d3a9cb", "rank 7"),
    "computing": ("#4d5866", "#a3afbf", "a kernel that computes"),
    "moving": ("#c23b8a", "#f07cc0", "bytes on their way"),
    "waiting": ("#d0b030", "#d9be58", "waiting for another rank"),
    "prefill": ("#7a5c3e", "#cda986", "a prefill"),
    "decode": ("#3f7f6b", "#7fc7ae", "a decode step"),
    "right": ("#2a7a40", "#71cf8c", "a claim that holds"),
    "wrong": ("#c0303c", "#ff8b8b", "a claim that does not"),
    "outdated": ("#8a6116", "#dfb262", "a claim that held once"),
    "vague": ("#656b76", "#a9b0bc", "a claim that says too little"),
    "missing": ("#9a9a9a", "#8b8f96", "what is missing, or was measured on another machine"),
    "ink": ("#1f2328", "#dfe3e8", "words"),
    "quiet": ("#57606a", "#a8b0ba", "words beside"),
    "line": ("#8c949e", "#6b7480", "edges and axes"),
    "faint": ("#e3e6ea", "#333a44", "grids, and grounds of boxes"),
    "ground": ("#ffffff", "#121212", "the page"),
}
RANK_COLOURS = tuple(COLOURS[f"rank-{i}"][0] for i in range(8))
RIGHT, WRONG, OUTDATED, VAGUE = (COLOURS[name][0] for name in ("right", "wrong", "outdated", "vague"))
COMPUTING, MOVING, WAITING = (COLOURS[name][0] for name in ("computing", "moving", "waiting"))
GREY = COLOURS["missing"][0]
DARK_PAGES = ('html[data-theme="dark"]', 'body[data-jp-theme-light="false"]')  # the built book, JupyterLab


def css(scope: str = ":root") -> str:
    """The variables, declared for `scope`, with their dark values where the page is dark."""
    light, dark = ("".join(f"--tp-{name}:{value[i]};" for name, value in COLOURS.items()) for i in (0, 1))
    darks = DARK_PAGES if scope == ":root" else [f"{page} {scope}" for page in DARK_PAGES]
    return f"{scope}{{{light}}}{','.join(darks)}{{{dark}}}"

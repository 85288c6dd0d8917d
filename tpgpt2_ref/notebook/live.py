"""A figure that grows while rows arrive, and whose last state stays in the page."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class LivePlot:
    """Redraws one figure from all rows seen so far.

    draw      draw(ax, rows): fills an empty axis from the list of rows. With several axes it gets their array
    subplots  keyword arguments of `Figure.subplots`, such as ncols=2
    figsize   inches; None is the style's

    A row that comes while the last picture is still fresh is drawn with the next one. The end of the cell draws
    what is left, so the page keeps the whole figure.
    """

    def __init__(self, draw: Callable[[Any, list[dict]], None], figsize: tuple[float, float] | None = None, **subplots):
        import matplotlib.pyplot as plt
        from IPython import get_ipython
        from IPython.display import display

        self.draw, self.subplots, self.rows = draw, subplots, []
        self.fresh, self.drawn_at, self.pause = True, 0.0, 0.0
        self.figure = plt.figure(figsize=figsize)
        self.axes = self.figure.subplots(**subplots)
        plt.close(self.figure)  # otherwise the cell's end shows it a second time
        self.handle = display(self.figure, display_id=True)
        self.shell = get_ipython()
        if self.shell is not None:
            self.shell.events.register("post_run_cell", self.finish)

    def add(self, row: dict) -> None:
        """One more row. Drawing takes at most about a fifth of the time."""
        self.rows.append(row)
        self.fresh = False
        if time.monotonic() - self.drawn_at > self.pause:
            self.redraw()

    def redraw(self) -> None:
        """Draw all rows now."""
        begin = time.monotonic()
        self.figure.clear()
        self.axes = self.figure.subplots(**self.subplots)
        self.draw(self.axes, self.rows)
        if self.handle is not None:
            self.handle.update(self.figure)
        self.fresh, self.drawn_at = True, time.monotonic()
        self.pause = 4 * (self.drawn_at - begin)

    def finish(self, result=None) -> None:
        """Draw what is left; a notebook does it at the end of the cell."""
        if self.shell is not None:
            self.shell.events.unregister("post_run_cell", self.finish)
        if not self.fresh:
            self.redraw()

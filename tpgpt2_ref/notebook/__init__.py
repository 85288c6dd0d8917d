"""What a chapter needs: `Ranks` (live ranks under a notebook), `LivePlot` (a figure that grows), `style`.

A notebook that imports `Ranks` will start some: the process that they are forked from imports torch meanwhile.
"""
from .live import LivePlot
from .style import style

__all__ = ["Ranks", "LivePlot", "style"]


def __getattr__(name: str):
    if name != "Ranks":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .forker import Forker
    from .ranks import Ranks
    from .show import in_a_notebook

    if in_a_notebook():
        Forker.take(users=0)
    return Ranks

"""What a chapter needs: `Ranks` (live ranks under a notebook), `LivePlot` (a figure that grows), `style`."""
from .live import LivePlot
from .ranks import Ranks
from .style import style

__all__ = ["Ranks", "LivePlot", "style"]

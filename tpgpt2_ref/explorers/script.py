"""The one script of all explorers and its style sheet, joined from the sources beside this file."""
from __future__ import annotations

from functools import cache
from pathlib import Path

from ..notebook.palette import css
from .data import embedded

HERE = Path(__file__).parent


@cache
def script(drawn: bool = True) -> str:
    """The JavaScript: all of it, or what answers without a page."""
    files = sorted((HERE / "js").glob("*.js" if drawn else "1*.js"))
    return "".join(file.read_text() for file in files)


def data_script() -> str:
    """The data as a script of its own, to be loaded first."""
    return f"globalThis.tpgpt2 = {{ data: {embedded()} }};\n"


def style() -> str:
    """The style sheet, with the book's palette: it stands alone in JupyterLab."""
    return "".join(css(scope) for scope in (".tpx", ".tpx-static")) + (HERE / "explorers.css").read_text()

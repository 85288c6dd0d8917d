"""Explorers: small machines on the book's pages that answer without a kernel, and measure with one.

    explorer("heads", tp=4)       shows one; keyword arguments are what it starts with
    predict("ring-steps", "How many steps does a ring of 8 take?", "steps", answer=14, tolerance=0)

In JupyterLab they are live widgets. The built book shows the same element from the cell's stored output.
"""
from __future__ import annotations

NAMES = ("heads", "selector", "collective", "timeline", "roofline", "cost", "prediction", "prediction-score")


def explorer(name: str, **initial) -> None:
    """Show an explorer of NAMES. initial: any of its controls, such as gpt2="gpt2-xl" or late=50."""
    from IPython.display import display

    from .widget import Explorer

    display(Explorer(name, initial))


def predict(key: str, question: str, unit: str = "", answer: float = 0, tolerance: float = 0.1,
            why: str = "") -> None:
    """Ask for a number before the answer is shown; the reader's is kept in the browser under `key`.

    answer     computed in the cell, never typed
    tolerance  a share of the answer: 0.1 takes what is within 10 % of it
    why        one sentence, shown with the answer
    """
    explorer("prediction", key=key, question=question, unit=unit, answer=float(answer), tolerance=float(tolerance),
             **({"why": why} if why else {}))

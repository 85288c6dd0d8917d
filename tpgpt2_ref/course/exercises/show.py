"""`exercise(name)`: the task as a page shows it, with hints and the solution folded away.

It is Markdown: in the built page the code is coloured and the formulas are set, and `<details>` folds in both places.
"""
from __future__ import annotations

import inspect
import re
import textwrap

from . import progress
from .catalogue import CATALOGUE, NEEDS, TITLES, Entry, find


def exercise(name: str) -> None:
    """Display one exercise: what is asked, hints, a solution."""
    from IPython.display import Markdown, display

    display(Markdown(markdown(find(name))))


def markdown(entry: Entry) -> str:
    task = entry.task
    folds = [fold(f"Hint {i}", hint) for i, hint in enumerate(task.HINTS, 1)]
    folds.append(fold("A solution", f"```python\n{solution(entry)}\n```"))
    return "\n\n".join([f"**Exercise: {entry.title}** ({NEEDS[entry.needs]})", inspect.getdoc(task), *folds])


def fold(title: str, text: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def start(entry: Entry) -> str:
    """The starting cell's source."""
    if hasattr(entry.task, "value"):
        return f"{entry.function} = ..."
    return ("import torch\n\n\n" if entry.needs == "torch" else "") + renamed(entry.task.start, entry)


def solution(entry: Entry) -> str:
    if hasattr(entry.task, "value"):
        return f"{entry.function} = {entry.task.solution()!r}"
    text = renamed(entry.task.solution, entry)
    return f"import torch\n\n\n{text}" if "torch." in text else text


def renamed(function, entry: Entry) -> str:
    """A task's function under the reader's name for it."""
    text = textwrap.dedent(inspect.getsource(function)).strip()
    return re.sub(rf"^def {function.__name__}\(", f"def {entry.function}(", text)


class Score:
    """Which exercises are solved and which patients were diagnosed, from the reader's own file."""

    def rows(self) -> list[tuple[str, str, str]]:
        """(chapter, "1 of 2", names with ✓ or the number of tries), chapter by chapter."""
        chapters = {}
        for entry in CATALOGUE:
            chapters.setdefault(entry.chapter, []).append(entry.name)
        return [(chapter, f"{sum(map(progress.solved, names))} of {len(names)}", ", ".join(map(self.mark, names)))
                for chapter, names in chapters.items()]

    def mark(self, name: str) -> str:
        tries = progress.tries(name)
        return f"{name} ✓" if progress.solved(name) else f"{name} ({tries} tries)" if tries else name

    def sum(self) -> str:
        lab = [p for p in progress.read()["lab"].values() if isinstance(p, dict) and p.get("right") is True]
        points = sum(p["points"] for p in lab if isinstance(p.get("points"), int))
        solved = sum(progress.solved(entry.name) for entry in CATALOGUE)
        patients = f"{len(lab)} patient{'s' * (len(lab) != 1)} diagnosed"
        return f"{solved} of {len(CATALOGUE)} exercises solved. {patients}, {points} points."

    def __repr__(self) -> str:
        return "\n".join([*(f"{chapter:20}{done:9}{names}" for chapter, done, names in self.rows()), self.sum()])

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(f'<tr><td><a href="{stem}.ipynb">{escape(TITLES[stem])}</a></td>'
                       f"<td>{escape(done)}</td><td>{escape(names)}</td></tr>" for stem, done, names in self.rows())
        return (f"<table><tr><th>chapter</th><th>solved</th><th>exercises</th></tr>{rows}</table>"
                f"<p>{escape(self.sum())}</p>")


def score() -> Score:
    """What the reader has done so far, as the last line of a cell shows it."""
    return Score()

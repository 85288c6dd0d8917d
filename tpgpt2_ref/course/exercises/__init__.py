"""Exercises that answer: `exercise(name)` shows the task, `check(name, answer)` says right, or what is wrong and why.

    catalogue.py   the list          tasks/        one file an exercise
    grader.py      check             on_rank.py    what runs on the ranks
    judge.py       how it is judged  progress.py   what the reader has done, in a file of her own
    show.py        exercise, score
"""
from .grader import check
from .show import exercise, score

__all__ = ["check", "exercise", "score"]

"""The kinds of faults that `faults.py` tries: on ranks in a notebook, around them, at their end, malformed input.

A kind's `run(stage)` makes the fault once and returns what was said: the error's text, or None where nothing has to be
said. `says` is what a good message holds. What must hold afterwards is the campaign's to look at.
"""
from .commands import COMMANDS, MALFORMED
from .ends import LEAKS, STRANGERS
from .kind import Kind
from .on_ranks import AROUND, CELLS, INTERRUPTS

KINDS = [*CELLS, *INTERRUPTS, *AROUND, *LEAKS, *STRANGERS, *COMMANDS, *MALFORMED]

__all__ = ["KINDS", "Kind"]

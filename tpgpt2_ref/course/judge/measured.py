"""What a measuring witness says."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A value, and the machine that it was measured on."""

    value: object
    machine: str

"""What a diagram is made of, whatever its width: lines with their claims, boxes, lanes, arrows, measured bars."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    text: str
    claims: tuple[int, ...] = ()
    now: str = ""  # what is so, where the line is not
    added: bool = False  # left out of the drawing: stands only in `as_is`


@dataclass(frozen=True)
class Cells:
    """Values of a tensor in small boxes, each in the colour of the rank it came from (or "" for none)."""

    values: tuple[str, ...]
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Box:
    title: str
    lines: tuple[Line | Cells, ...] = ()
    name: str = ""  # in DIAGRAMS: the code that it is
    claims: tuple[int, ...] = ()
    now: str = ""
    rank: int | None = None
    inner: tuple[Box, ...] = ()  # lanes inside the box
    columns: tuple[tuple[str, tuple[Line, ...]], ...] = ()  # (head, lines): a row of a table
    tag: str = ""
    added: bool = False


@dataclass(frozen=True)
class Lanes:
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Heading:
    text: str
    note: Line | None = None


@dataclass(frozen=True)
class Arrow:
    """Down from what stands above to what stands below; two arms spread to (or come from) lanes."""

    text: str = ""
    arms: int = 1


@dataclass(frozen=True)
class Bar:
    """What a run measured of a box: drawn on one scale for the whole diagram."""

    label: str
    value: float
    unit: str
    colour: str


@dataclass(frozen=True)
class Lit:
    """Bars by a box's title, and the machine and run they are of."""

    of: str
    bars: dict[str, list[Bar]]


@dataclass(frozen=True)
class Drawing:
    number: str  # "2", or "cost"
    title: str  # its key in DIAGRAMS
    desc: str
    rows: tuple[Box | Lanes | Heading | Arrow, ...]

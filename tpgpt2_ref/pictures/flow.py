"""A diagram's geometry: boxes from top to bottom, lanes side by side, and how they are laid out at a width, in a state.

A `Drawing` says what stands where in the diagram as drawn. `laid_out` makes one picture of it:

    drawn   as it was drawn
    as_is   each claim with its verdict: what is wrong struck, what is so beneath it, what was left out added
    lit     each box with what a recorded run measured of it

Below `svg.NARROW` + a bit, lanes stand one below the other. Words between backticks are code.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace

from . import svg
from .diagrams import DIAGRAMS, file_of
from .lit import SILENT
from .shapes import Arrow, Box, Cells, Drawing, Heading, Lanes, Line, Lit
from .svg import MONO, SANS

PAD, STEP, GAP = 11, 18, 12
WORST = ("wrong", "outdated", "vague", "missing", "right")  # of a line's claims the first of these is shown


@dataclass
class Page:
    """What one layout is made with, and its two layers: links with what is in them, and what lies above."""

    drawing: Drawing
    state: str
    verdicts: dict[int, str]
    lit: Lit | None
    wide: bool
    under: list[str] = field(default_factory=list)
    over: list[str] = field(default_factory=list)

    def code(self, box: Box) -> str:
        return DIAGRAMS[self.drawing.title].get(box.name or box.title.strip("`"), "")

    def verdict(self, claims: tuple[int, ...]) -> str:
        found = {self.verdicts.get(claim, "vague") for claim in claims}
        return next((v for v in WORST if v in found), "")


def laid_out(drawing: Drawing, state: str, wide: bool, verdicts: dict[int, str], lit: Lit | None) -> tuple[float, str]:
    """(height, inside of the picture) for one state at one width."""
    page = Page(drawing, state, verdicts, lit, wide)
    w, y = (svg.WIDE if wide else svg.NARROW) - 4, 2.0
    rows = [r for r in drawing.rows if state == "as_is" or not getattr(r, "added", False)]
    for row, before in zip(rows, [Arrow(), *rows]):
        stacked = not isinstance(row, (Arrow, Heading)) and not isinstance(before, (Arrow, Heading))
        y += 8 * stacked  # two boxes that no arrow joins
        y += _row(page, row, 2, y, w)
    return y + 2, "".join(page.under + page.over)


def _row(page: Page, row, x: float, y: float, w: float) -> float:
    if isinstance(row, Arrow):
        return _arrow(page, row, x, y, w)
    if isinstance(row, Heading):
        page.under.append(svg.words(x + w / 2, y + 25, row.text, 13, anchor="middle", bold=True))
        below = 0.0
        if row.note and page.state != "lit":
            below = _line(page, row.note, x + 12, y + 29, w - 24, page.under, middle=True)
        return 34 + below
    if isinstance(row, Lanes):
        return _lanes(page, row.boxes, x, y, w)
    return _box(page, row, x, y, w)


def _arrow(page: Page, row: Arrow, x: float, y: float, w: float) -> float:
    high, middle = 24 if row.text else 20, x + w / 2
    if row.arms == 1 or not page.wide:
        page.under.append(svg.arrow(middle, y + 2, middle, y + high - 2))
        if row.text and svg.width(row.text, 12) < w / 2 - 12:
            page.under.append(svg.words(middle + 10, y + high / 2 + 4, row.text, 12, "quiet"))
        elif row.text:
            page.under.append(svg.words(middle, y + high + 12, row.text, 12, "quiet", "middle"))
            return high + 20
    else:
        ends = [x + w * (2 * i + 1) / (2 * row.arms) for i in range(row.arms)]
        page.under += [svg.arrow(middle + (end - middle) * .25, y + 2, end, y + high - 2) for end in ends]
    return high


def _lanes(page: Page, boxes: tuple[Box, ...], x: float, y: float, w: float, within: str = "") -> float:
    if not page.wide:
        high = 0.0
        for i, box in enumerate(boxes):
            high += _box(page, box, x, y + high, w, 0, within) + (8 if i < len(boxes) - 1 else 0)
        return high
    each = (w - GAP * (len(boxes) - 1)) / len(boxes)
    measure = [_box(blank(page), box, 0, 0, each, 0, within) for box in boxes]
    for i, box in enumerate(boxes):
        _box(page, box, x + i * (each + GAP), y, each, max(measure), within)
    return max(measure)


def blank(page: Page) -> Page:
    """A page of the same kind, to measure on or to draw a layer of its own."""
    return replace(page, under=[], over=[])


def _box(page: Page, box: Box, x: float, y: float, w: float, high: float = 0, within: str = "") -> float:
    """Draw a box at (x, y), at least `high`, `within` a box that is the same code: -> its height."""
    target, inside = page.code(box), []
    layer = blank(page)
    edge = 7 if box.rank is not None else 0
    left, room = x + PAD + edge, w - 2 * PAD - edge
    at = y + 6
    if box.tag:
        inside.append(svg.rect(left, at + 3, svg.width(box.tag, 12, bold=True) + 12, 18, "computing", "", 9))
        inside.append(svg.words(left + 6, at + 16.5, box.tag, 12, "ground", bold=True))
        left, room = left + svg.width(box.tag, 12, bold=True) + 20, room - svg.width(box.tag, 12, bold=True) - 20
    if box.title:
        title = Line(box.title, box.claims, box.now, box.added)
        at += _line(page, title, left, at, room, inside, layer.over, True, "" if target == within else _file(target))
    if page.state == "lit":
        at += _bars(page, box, left, at, room, inside)
    else:
        for line in box.lines:
            at += _content(page, line, left, at, room, inside, layer.over)
    if box.columns and page.state != "lit":
        at += _columns(page, box, left, at, room, inside, layer.over)
    if box.inner and not (page.state == "lit" and page.lit and box.title.strip("`") in page.lit.bars):
        at += 8 + _lanes(layer, box.inner, left, at + 5, room, target)
    high = max(high, at - y + 8)
    colour = f"rank-{box.rank}" if box.rank is not None else ""
    ground = [svg.rect(x, y, w, high, colour or "faint", "right" if box.added else colour or "line", 6,
                       .1 if colour else .35, "5 4" if box.added else "", 1.2)]
    if colour:
        ground.append(svg.rect(x, y, 5, high, colour, "", 2.5))
    drawn = "".join(ground + inside)
    if target:
        label = f"{box.title.strip('`')}: {target.partition(':')[2]} in {_file(target)}"
        drawn = svg.link(href(target), label, drawn)
    page.under.append(drawn)
    page.over += layer.under + layer.over
    return high


def _content(page, line, x, y, room, under, over) -> float:
    if isinstance(line, Cells):
        return _cells(line, x, y, under)
    if line.added and page.state != "as_is":
        return 0
    return _line(page, line, x, y, room, under, over)


def _line(page: Page, line: Line, x: float, y: float, room: float, under: list, over: list | None = None,
          bold: bool = False, file: str = "", middle: bool = False) -> float:
    """Words with what the state adds to them; `over` gets the links to the ledger: -> height."""
    as_is = page.state == "as_is"
    verdict = "" if line.added or not as_is else page.verdict(line.claims)
    struck = verdict in ("wrong", "outdated")
    mono = line.text.startswith("`") and line.text.endswith("`")
    text, size = line.text.strip("`") if mono else line.text, MONO if mono else 13 if bold else SANS
    badges = sum(_badge_width(c) + 3 for c in line.claims) if as_is else 0
    parts, high = svg.wrapped(text, room - badges, size, mono, bold), 0.0
    colour = "right" if line.added else verdict if struck else "quiet" if page.state == "lit" and not bold else "ink"
    for part in parts:
        high += STEP
        left = x + (room - svg.width(part, size, mono, bold) - badges) / 2 if middle else x
        under.append(svg.words(left, y + high - 3, part, size, colour, mono=mono, bold=bold, struck=struck))
    end, limit = left + svg.width(parts[-1], size, mono, bold) + 6, x + room
    if file and limit - end > svg.width(file, 10.5, True) + badges:
        under.append(svg.words(limit, y + high - 3, file, 10.5, "quiet", "end", mono=True))
        limit -= svg.width(file, 10.5, True) + 6
    for claim in line.claims if as_is else ():
        (under if over is None else over).append(_badge(claim, page.verdicts.get(claim, "vague"), end, y + high - 16))
        end += _badge_width(claim) + 3
    if as_is and line.now and verdict != "right":
        high += _now(line.now, x, y + high, room, end + 2, limit, under, middle)
    return high


def _now(now: str, x: float, y: float, room: float, end: float, limit: float, under: list, middle: bool) -> float:
    """What is so: behind the line, or beneath it where there is no room: -> the height that it adds."""
    if not middle and end + svg.width("→ " + now) < limit:
        under.append(svg.words(end, y - 3, "→ " + now, fill="right"))
        return 0
    parts = svg.wrapped("→ " + now, room - 4)
    for i, part in enumerate(parts):
        left = x + (room - svg.width(part)) / 2 if middle else x + (14 if i else 0)
        under.append(svg.words(left, y + STEP * (i + 1) - 3, part, fill="right"))
    return STEP * len(parts)


def _badge_width(claim: int) -> float:
    return 13 + 6.6 * len(f"{claim}") + 8


def _badge(claim: int, verdict: str, x: float, y: float) -> str:
    mark = {"wrong": "✗", "right": "✓", "outdated": "†", "vague": "~"}.get(verdict, "+")
    w, fill = _badge_width(claim), verdict if verdict in WORST[:3] + ("right",) else "vague"
    return svg.link(f"ledger.md#claim-{claim}", f"claim {claim}: {verdict}",
                    svg.rect(x, y, w, 16, fill, "", 8) + svg.words(x + w / 2, y + 12, f"{mark} {claim}", 11, "ground",
                                                                   "middle", bold=True))


def _cells(line: Cells, x: float, y: float, under: list) -> float:
    for i, (value, colour) in enumerate(zip(line.values, line.colours, strict=True)):
        at = x + i * 38
        under.append(svg.rect(at, y + 4, 34, 26, colour or "faint", colour or "line", 4, .28))
        under.append(svg.words(at + 17, y + 21.5, value, 13, anchor="middle", mono=True))
    return 36


def _columns(page, box, x, y, room, under, over) -> float:
    if page.wide:
        each, high = room / len(box.columns), 0.0
        for i, (head, lines) in enumerate(box.columns):
            under.append(svg.words(x + i * each, y + 13, head, 11, "quiet"))
            at = 15.0
            for line in lines:
                at += _content(page, line, x + i * each, y + at, each - 12, under, over)
            high = max(high, at)
        return high
    high = 0.0
    for head, lines in box.columns:
        if head:
            under.append(svg.words(x, y + high + 15, head, 11, "quiet"))
        at = 0.0
        for line in lines:
            at += _content(page, line, x + 84, y + high + at, room - 84, under, over)
        high += max(at, STEP) + 2
    return high


def _bars(page: Page, box: Box, x: float, y: float, room: float, under: list) -> float:
    bars = page.lit.bars.get(box.title.strip("`"), ()) if page.lit else ()
    silent = box.title.strip("`") in SILENT
    if silent or not bars and not box.inner and box.rank is None:
        said = "no kernel, no message" if silent else "not timed in this run"
        under.append(svg.words(x, y + 14, said, 11.5, "missing"))
        return 21.0
    units = {bar.unit for bar in bars}
    most = {u: max(b.value for all_ in page.lit.bars.values() for b in all_ if b.unit == u) for u in units} | {"%": 100}
    label = max((svg.width(b.label, 11.5) for b in bars), default=0) + 8
    for i, bar in enumerate(bars):
        at, said = y + 3 + 18 * i, f"{bar.value:,.1f} {bar.unit}" if bar.value < 100 else f"{bar.value:,.0f} {bar.unit}"
        space = max(20.0, room - label - svg.width(said, 11.5) - 10)
        long = max(1.5, space * bar.value / most[bar.unit])
        under += [svg.words(x, at + 14, bar.label, 11.5, "quiet"),
                  svg.rect(x + label, at + 4, long, 12, bar.colour, "", 2),
                  svg.words(x + label + long + 6, at + 14, said, 11.5)]
    return 18.0 * len(bars) + 3


def _file(target: str) -> str:
    return file_of(target) if target else ""


def href(target: str) -> str:
    """Where a box leads, from a chapter in book/: a file in JupyterLab; the built page makes its code page of it."""
    return f"../tpgpt2_ref/{_file(target)}"

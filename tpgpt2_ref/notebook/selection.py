"""Diagram 1 drawn from the selector's own answer: the path taken in colour, the boxes passed by in grey."""
from __future__ import annotations

from dataclasses import dataclass
from html import escape
from textwrap import wrap

from ..attention.matrix import MATRIX, ORDER
from ..attention.platform import Platform
from ..attention.selector import Choice
from .palette import COLOURS, GREY, RIGHT, WRONG

TAKEN, REFUSED = RIGHT, WRONG
WIDTH, LINE, GAP = 700, 16, 14


@dataclass(frozen=True)
class Box:
    title: str
    text: str
    colour: str  # TAKEN, REFUSED or GREY

    @property
    def lines(self) -> list[str]:
        return wrap(self.text, 108)

    @property
    def height(self) -> int:
        return LINE * (1 + len(self.lines)) + 10


def boxes(choice: Choice, platform: Platform, layer: str) -> list[Box]:
    """Diagram 1 from top to bottom, as this answer went through it."""
    asked = {"force": 1, "environment": 2, "platform": 3}[choice.source]

    def priority(n: int, title: str, empty: str) -> Box:
        text = choice.why if asked == n else empty if asked > n else "not asked any more"
        return Box(f"Priority {n}: {title}", text, TAKEN if asked >= n else GREY)

    path = [
        Box("Attention layer", layer, TAKEN),
        priority(1, "force", "None: continue"),
        priority(2, "VLLM_ATTENTION_BACKEND", "None: continue"),
        priority(3, "the platform decides", ""),
    ]
    if asked == 3:
        order = ORDER[platform.kind]
        for name in order[:order.index(choice.backend)]:
            path.append(Box(f"{name}?  no", "; ".join(choice.rejected[name]), REFUSED))
    module, _, name = MATRIX[choice.backend].qualname.partition(":")
    return [*path,
            Box(f"{choice.backend}?  yes", MATRIX[choice.backend].note, TAKEN),
            Box("resolve_obj_by_qualname()", f"{module}.{name}", TAKEN),
            Box("Ready", f"{name}(...) imports its kernel: {' or '.join(MATRIX[choice.backend].packages)}", TAKEN)]


def selection_svg(choice: Choice, platform: Platform, layer: str) -> str:
    """The picture, as SVG text. `layer` says in words what was asked for."""
    parts, y, begin = [], 8, None
    for box in boxes(choice, platform, layer):
        if begin is not None:
            parts.append(f'<path d="M{WIDTH / 2} {begin} V{y}" stroke="{box.colour}" marker-end="url(#tip)"/>')
        parts.append(f'<rect x="20" y="{y}" width="{WIDTH - 40}" height="{box.height}" rx="5" fill="{box.colour}" '
                     f'fill-opacity="0.08" stroke="{box.colour}"/>')
        for i, line in enumerate([box.title, *box.lines]):
            weight = ' font-weight="bold"' if i == 0 else ""
            parts.append(f'<text x="32" y="{y + 4 + LINE * (i + 1) - 2}"{weight}>{escape(line)}</text>')
        begin, y = y + box.height, y + box.height + GAP
    title = escape(f"{choice.backend}, chosen by {choice.source} on {platform}")
    inside = "".join(parts)
    for name, (light, _, _) in COLOURS.items():  # the page's own colours where it declares them
        inside = inside.replace(f'"{light}"', f'"var(--tp-{name}, {light})"')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" style="max-width:100%" '
            f'role="img" aria-label="{title}" font-family="sans-serif" font-size="12" fill="var(--tp-ink, #222)">'
            f'<defs><marker id="tip" markerWidth="6" markerHeight="6" refX="5" refY="3" orient="auto">'
            f'<path d="M0 0 L6 3 L0 6 z" fill="var(--tp-line, #666)"/></marker></defs>{inside}</svg>')

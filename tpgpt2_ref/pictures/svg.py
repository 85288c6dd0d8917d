"""The strokes that every picture is made of: words that know their width, boxes, arrows, links. Nothing but text.

Coordinates are CSS pixels at the picture's own width. Colours are variables of `notebook.palette`.
"""
from __future__ import annotations

import re
from html import escape

SANS, MONO = 12.5, 12.0  # pixels; `mono` words stand between backticks
NARROW, WIDE = 340, 720  # the two widths that a picture is laid out for
# em of the letters of DejaVu Sans, the widest of the faces that a page may get
EM = {c: em for em, letters in {
    .3: " ',.IJijl·", .36: "-/:;\\f|", .41: "!()[]rt₁₂", .47: '"', .52: "*_`sz†", .57: "?Lc", .62: "FPTYaekovxy",
    .65: "0123456789EKSbdghnpquµ{}", .71: "ABCRVXZ", .78: "DGHNU", .82: "&OQw", .85: "#+<=>M~→←≈×↔✓✗", 1.: "@W%m…—",
}.items() for c in letters}


def width(text: str, size: float = SANS, mono: bool = False, bold: bool = False) -> float:
    """Pixels that words need, on the generous side: fonts differ."""
    if mono:
        return len(text) * size * 0.605
    return sum(EM.get(c, .8) for c in text) * size * (1.12 if bold else 1.0)


def wrapped(text: str, room: float, size: float = SANS, mono: bool = False, bold: bool = False) -> list[str]:
    """Lines of whole words, none wider than `room` (a longer word stands alone)."""
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and width(longer, size, mono, bold) > room:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]


def words(x: float, y: float, text: str, size: float = SANS, fill: str = "ink", anchor: str = "", **kind) -> str:
    """One line of words. kind: mono, bold, struck."""
    classes = [name for name in ("mono", "bold") if kind.get(name)]
    attributes = f' class="{" ".join(classes)}"' if classes else ""
    if fill != "ink":
        attributes += f' fill="{var(fill)}"'
    size = MONO if kind.get("mono") and size == SANS else size
    if size != SANS:
        attributes += f' font-size="{size:g}"'
    if anchor:
        attributes += f' text-anchor="{anchor}"'
    if kind.get("struck"):
        attributes += ' style="text-decoration:line-through"'
    return f'<text x="{x:.6g}" y="{y:.6g}"{attributes}>{escape(text, quote=False)}</text>'


def rect(x: float, y: float, w: float, h: float, fill: str = "", stroke: str = "line", r: float = 5, tint: float = 1,
         dash: str = "", thick: float = 1) -> str:
    """A box. fill, stroke: names of the palette, or "" for none; tint: how much of the fill."""
    paint = f'fill="{var(fill)}"' + (f' fill-opacity="{tint:g}"' if tint != 1 else "") if fill else 'fill="none"'
    edge = (f' stroke="{var(stroke)}"' if stroke else "") + (f' stroke-width="{thick:g}"' if thick != 1 else "")
    edge += f' stroke-dasharray="{dash}"' if dash else ""
    return f'<rect x="{x:.6g}" y="{y:.6g}" width="{w:.6g}" height="{h:.6g}" rx="{r:g}" {paint}{edge}/>'


def arrow(x0: float, y0: float, x1: float, y1: float, colour: str = "line", thick: float = 1.4) -> str:
    """A straight arrow with its head at (x1, y1)."""
    length = max(1e-6, ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5)
    ux, uy, head = (x1 - x0) / length, (y1 - y0) / length, 3.2 + 2.2 * thick
    bx, by = x1 - ux * head, y1 - uy * head
    sx, sy = uy * head / 2, ux * head / 2
    tip = f"{x1:.1f},{y1:.1f} {bx - sx:.1f},{by + sy:.1f} {bx + sx:.1f},{by - sy:.1f}"
    return (f'<path d="M{x0:.1f} {y0:.1f}L{bx:.1f} {by:.1f}" stroke="{var(colour)}" stroke-width="{thick:g}" '
            f'fill="none"/><polygon points="{tip}" fill="{var(colour)}"/>')


def line(x0: float, y0: float, x1: float, y1: float, colour: str = "line", thick: float = 1, dash: str = "") -> str:
    more = f' stroke-dasharray="{dash}"' if dash else ""
    return (f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="{var(colour)}" stroke-width="{thick:g}" '
            f'fill="none"{more}/>')


def link(href: str, label: str, inside: str) -> str:
    """A part of the picture that leads somewhere; `label` is what is read aloud and shown on hover.

    JupyterLab fails on an SVG link with a plain `href`, which it wants to set. It leaves `xlink:href` to the browser,
    for which a path from the chapter leads to the file in JupyterLab as well. The built page makes plain links of them.
    """
    label = escape(label)
    return f'<a xlink:href="{escape(href)}" target="_blank" aria-label="{label}"><title>{label}</title>{inside}</a>'


def svg(w: float, h: float, inside: str, title: str, desc: str, key: str, name: str = "") -> str:
    """A whole picture with its title and description."""
    return (f'<svg class="{name}" viewBox="0 0 {w:g} {h:.6g}" xmlns="http://www.w3.org/2000/svg" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink" role="group" '
            f'aria-labelledby="{key}-t" aria-describedby="{key}-d" style="max-width:{w:g}px"><title id="{key}-t">'
            f'{escape(title)}</title><desc id="{key}-d">{escape(desc)}</desc>{inside}</svg>')


def var(name: str) -> str:
    return f"var(--tp-{name})"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

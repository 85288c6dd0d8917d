"""Hiding a sum: a rank's work on a batch in one piece, and on its two halves, each in a lane of its own."""
from __future__ import annotations

from . import svg
from .matrices import caption

PRODUCTS, SUM = (("attention", 2.0), ("MLP", 3.2)), 1.4  # one layer's, of a whole batch, in no unit


def schedule(parts: str, layers: int = 2) -> list[tuple[str, str, float, float]]:
    """[(part, what, start, end)]. A product waits for its own half's sum, and for the product before it, of whichever
    half; a sum waits for its product and for the sum before it."""
    product = sums = 0.0
    own, spans = dict.fromkeys(parts, 0.0), []
    for what, length in PRODUCTS * layers:
        for part in parts:
            start = max(product, own[part])
            product = start + length / len(parts)
            begin = max(sums, product)
            sums = own[part] = begin + SUM / len(parts)
            spans += [(part, what, start, product), (part, "sum", begin, sums)]
    return spans


def hidden_sums(wide: bool) -> tuple[float, str]:
    w, parts, y = svg.WIDE if wide else svg.NARROW, [], 2.0
    forms = (("In one piece: products wait for each sum", " "),
             ("In two halves: one sums, the other computes", "AB"))
    left, longest = 30, max(end for *_, end in schedule(" "))
    scale = (w - left - 8) / longest
    for title, halves in forms:
        parts.append(svg.words(4, y + 13, title, 12.5 if wide else 11, bold=True))
        for i, half in enumerate(halves):
            top = y + 22 + 32 * i
            parts.append(svg.words(10, top + 18, half.strip(), 12, bold=True))
            parts.append(svg.line(left, top + 29, w - 8, top + 29, "faint"))
            for part, what, start, end in schedule(halves):
                if part == half:
                    parts.append(_span(left + start * scale, top, (end - start) * scale, what))
        last, bottom = left + max(end for *_, end in schedule(halves)) * scale, y + 22 + 32 * len(halves)
        parts.append(svg.line(last, y + 18, last, bottom, "ink", 1.2, "4 3"))
        y = bottom + 10
    more, said = caption(w, y, "A sketch, not a measurement: two layers on one rank; the other ranks run the same. "
                               "Grey needs the SMs, magenta the link. A half goes on only behind its own sum. The last "
                               "sum has nothing to hide under.")
    return y + more, "".join([*parts, said])


def _span(x: float, top: float, w: float, what: str) -> str:
    """A product or a sum, with its name where it fits."""
    colour, tint, fill = ("moving", .9, "ground") if what == "sum" else ("computing", .35, "ink")
    name = next((n for n in (what, {"attention": "attn"}.get(what, what)) if svg.width(n, 11) < w - 2), "")
    return svg.rect(x, top, w, 26, colour, "line", 3, tint, thick=.6) + (
        svg.words(x + w / 2, top + 17.5, name, 11, fill, "middle") if name else "")

"""Hiding a sum: a rank's two lanes, products and sums, for a batch in one piece and for its two halves in turn."""
from __future__ import annotations

from . import svg
from .matrices import caption

PRODUCTS, SUM = (("attention", 2.0), ("MLP", 3.2)), 1.4  # one layer's, of a whole batch, in no unit


def schedule(parts: str, layers: int = 2) -> list[tuple[str, str, str, float, float]]:
    """[(lane, part, what, start, end)]. A product waits for its own half's sum; in each lane one comes after the other.
    """
    free, own, spans = {"products": 0.0, "sums": 0.0}, dict.fromkeys(parts, 0.0), []
    for what, length in PRODUCTS * layers:
        for part in parts:
            start = max(free["products"], own[part])
            free["products"] = end = start + length / len(parts)
            begin = max(free["sums"], end)
            free["sums"] = own[part] = begin + SUM / len(parts)
            spans += [("products", part, what, start, end), ("sums", part, "sum", begin, own[part])]
    return spans


def hidden_sums(wide: bool) -> tuple[float, str]:
    w, parts, y = svg.WIDE if wide else svg.NARROW, [], 2.0
    forms = (("In one piece: products wait for each sum", " "), ("In two halves: A's sum runs while B computes", "AB"))
    left, longest = 62, max(end for *_, end in schedule(" "))
    scale = (w - left - 8) / longest
    for title, halves in forms:
        parts.append(svg.words(4, y + 13, title, 12.5 if wide else 11, bold=True))
        for lane, top in (("products", y + 22), ("sums", y + 56)):
            parts.append(svg.words(4, top + 19, lane, 11.5))
            parts.append(svg.line(left, top + 28, w - 8, top + 28, "faint"))
            for where, half, what, start, end in schedule(halves):
                if where == lane:
                    parts.append(_span(left + start * scale, top, (end - start) * scale, half, what))
        last = max(end for *_, end in schedule(halves))
        parts.append(svg.line(left + last * scale, y + 20, left + last * scale, y + 88, "ink", 1.2, "4 3"))
        y += 100
    more, said = caption(w, y, "A sketch, not a measurement: two layers on one rank; the other ranks run the same. "
                               "Where the upper lane is empty, the SMs wait for a sum. A half goes on only "
                               "behind its own sum. The last sum has nothing to hide under.")
    return y + more, "".join([*parts, said])


def _span(x: float, top: float, w: float, half: str, what: str) -> str:
    """A product, half B's paler, or a sum; with its name where it fits."""
    colour, tint = ("moving", .9) if what == "sum" else ("computing", .2 if half == "B" else .5)
    short = {"attention": "attn"}.get(what, what)
    names = [what, short] if half == " " else [f"{half} {what}", f"{half} {short}", half]
    name = next((n for n in names if svg.width(n, 11) < w - 4), "") if what != "sum" else half.strip() or "sum"
    fits = svg.width(name, 11) < w
    return svg.rect(x, top, w, 26, colour, "line", 3, tint, thick=.6) + (svg.words(
        x + w / 2, top + 17.5, name, 11, "ground" if what == "sum" else "ink", "middle") if fits else "")

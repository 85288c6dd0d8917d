"""Pictures of the course as HTML that needs no kernel and no script: `diagram(2)`, `picture("head-stripes")`.

Each is laid out for a wide and for a narrow page, and the page's width chooses. A box of a diagram leads to its code, a
claim's number to its row of the ledger. Colours are `notebook.palette`'s.
"""
from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..notebook.palette import css
from . import svg
from .drawn import ONE, THREE, TWO
from .drawn_more import COST, FIVE, FOUR, SIX
from .flow import laid_out
from .lit import lit
from .shapes import Drawing

DRAWINGS: dict[str, Drawing] = {d.number: d for d in (ONE, TWO, THREE, FOUR, FIVE, SIX, COST)}
STATES = {"drawn": "as drawn", "as_is": "as it is", "lit": "measured"}
CLAIMS = Path(__file__).parents[2] / "book" / "claims.toml"
SWITCH = 600  # a page at least so wide shows the wide layout

CSS = css(".tp") + (
    ".tp{margin:0 0 1rem;container-type:inline-size;color:var(--tp-ink);"
    "font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}"
    ".tp svg{display:block;width:100%;height:auto;margin:0 auto;font-size:12.5px;fill:var(--tp-ink)}"
    ".tp svg text{font-family:inherit}.tp .bold{font-weight:600}"
    ".tp svg .mono{font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace}"
    ".tp svg a{text-decoration:none!important;color:inherit}"
    ".tp a:hover>rect:first-of-type,.tp a:focus-visible>rect:first-of-type{stroke:var(--tp-ink);stroke-width:2}"
    ".tp fieldset{border:0;padding:0;margin:0 0 .6rem;display:flex;flex-wrap:wrap;gap:.1rem .9rem;align-items:center}"
    ".tp legend{float:left;padding:0;margin:0;font-size:.9rem;width:auto;font-weight:600}"
    ".tp label{display:inline-flex;gap:.35rem;align-items:center;margin:0;font-size:.85rem;min-height:24px}"
    ".tp input,.tp label{cursor:pointer}"
    ".tp p,.tp figcaption{font-size:.85rem;color:var(--tp-quiet);margin:.4rem 0 0;text-align:left}"
    ".tp .tp-phone,.tp .tp-as_is,.tp .tp-lit{display:none}"
    ".tp:has(.tp-pick-as_is:checked) .tp-as_is,.tp:has(.tp-pick-lit:checked) .tp-lit{display:block}"
    ".tp:has(.tp-pick-as_is:checked) .tp-drawn,.tp:has(.tp-pick-lit:checked) .tp-drawn{display:none}"
    f"@container (max-width:{SWITCH}px){{.tp .tp-wide{{display:none}}.tp .tp-phone{{display:block}}}}"
    "@media print{.tp fieldset{display:none}}")


class Picture:
    """HTML that a notebook shows and a built page keeps."""

    def __init__(self, html: str, said: str):
        self.html, self.said = html, said

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/html": self.html, "text/plain": self.said}


def diagram(number: int | str) -> Picture:
    """One of the diagrams, 1 to 6 or "cost", in its three states; the reader switches. Once a page."""
    drawing = DRAWINGS.get(str(number))
    if drawing is None:
        raise UserError(f"no diagram {number!r}: there are {', '.join(DRAWINGS)}")
    found, measured, parts = verdicts(), lit(drawing.number), []
    states = [s for s in STATES if s != "lit" or measured]
    key = f"tp-diagram-{drawing.number}"
    for state in states:
        views = []
        for wide in (True, False):
            high, inside = laid_out(drawing, state, wide, found, measured)
            views.append(svg.svg(svg.WIDE if wide else svg.NARROW, high, inside, f"{name(drawing)}, {STATES[state]}",
                                 drawing.desc, f"{key}-{state}-{'w' if wide else 'p'}",
                                 "tp-wide" if wide else "tp-phone"))
        said = {"drawn": "", "as_is": "✗ wrong, † right once, ~ says too little, ✓ right. A number leads to the claim.",
                "lit": f"Measured: {measured.of}." if measured else ""}[state]
        parts.append(f'<div class="tp-{state}">{"".join(views)}{f"<p>{said}</p>" if said else ""}</div>')
    picks = "".join(f'<label><input type="radio" name="{key}" class="tp-pick-{s}"{" checked" * (s == "drawn")}> '
                    f'{STATES[s]}</label>' for s in states)
    html = (f'<figure class="tp" id="{key}"><style>{CSS}</style><fieldset><legend>{name(drawing)}</legend>{picks}'
            f'</fieldset>{"".join(parts)}</figure>')
    return Picture(html, f"{name(drawing)}. {drawing.desc}")


def name(drawing: Drawing) -> str:
    return "The cost table" if drawing.number == "cost" else f"Diagram {drawing.number}"


def picture(which: str) -> Picture:
    """One of the teaching pictures: `pictures.PICTURES` names them."""
    from .teaching import PICTURES

    if which not in PICTURES:
        raise UserError(f"no picture {which!r}: there are {', '.join(PICTURES)}")
    title, desc, draw = PICTURES[which]
    key, views = f"tp-picture-{which}", []
    for wide in (True, False):
        w = svg.WIDE if wide else svg.NARROW
        high, inside = draw(wide)
        views.append(svg.svg(w, high, inside, title, desc, f"{key}-{'w' if wide else 'p'}",
                             "tp-wide" if wide else "tp-phone"))
    return Picture(f'<figure class="tp" id="{key}"><style>{CSS}</style>{"".join(views)}<figcaption>{title}</figcaption>'
                   '</figure>', f"{title}. {desc}")


def verdicts() -> dict[int, str]:
    """Each claim's verdict, as the ledger has it."""
    import tomllib

    with CLAIMS.open("rb") as file:
        return {row["id"]: row["verdict"] for row in tomllib.load(file)["claim"]}

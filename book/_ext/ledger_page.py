"""The ledger's page, made when the book is built: every claim once, as a table that a reader can filter.

    ```{ledger}
    ```

Rows come from `book/claims.toml`, the machine from the chapters' stored outputs. The build fails if a claim has no
verdict, or if a chapter's outputs judge one otherwise. Without JavaScript the whole table stands there.
"""
import sys
from collections import Counter
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

BOOK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BOOK.parent))

from tpgpt2_ref.course.claims import KINDS, LEDGER, VERDICTS, ClaimError, agree, ledger  # noqa: E402
from tpgpt2_ref.pictures.diagrams import DIAGRAMS  # noqa: E402

VLLM = "https://github.com/vllm-project/vllm/blob/v{version}/{path}#L{line}"
CHOICES = {"diagram": ["1", "2", "3", "4", "5", "6", "cost"], "verdict": VERDICTS, "kind": KINDS}


class Ledger(SphinxDirective):
    def run(self):
        chapters = sorted(BOOK.glob("*.ipynb"))
        for file in (LEDGER, *chapters):
            self.env.note_dependency(str(file))
        try:
            claims, machines = list(ledger().values()), agree(chapters)
        except ClaimError as e:
            raise ExtensionError(str(e)) from e
        return [nodes.raw("", page(claims, machines) + '<script src="_static/ledger.js"></script>', format="html")]


def page(claims, machines) -> str:
    """The filter, the count and the table, diagram by diagram."""
    claims = sorted(claims, key=lambda claim: CHOICES["diagram"].index(str(claim.diagram)))
    rows = "".join(row(claim, machines.get(claim.id)) for claim in claims)
    counts = Counter(claim.verdict for claim in claims)
    summary = ", ".join(f"{counts[v]} {v}" for v in VERDICTS)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("No.", "The diagrams say", "Verdict", "What is so"))
    return (f'<form class="ledger-filter" hidden>{"".join(chooser(*choice) for choice in CHOICES.items())}'
            f'<button type="reset">all claims</button></form>'
            f'<p class="ledger-count" aria-live="polite">{len(claims)} claims: {summary}.</p>'
            f'<table class="ledger"><thead><tr>{head}</tr></thead><tbody id="ledger-rows">{rows}</tbody></table>')


def chooser(name: str, values) -> str:
    options = "".join(f'<option value="{v}">{v}</option>' for v in values)
    return (f'<label>{name} <select name="{name}" aria-controls="ledger-rows"><option value="">all</option>{options}'
            f'</select></label>')


def row(claim, machine: str | None) -> str:
    """machine: None where the chapter does not judge the claim, "" where it does and nothing was measured."""
    cell = f"{claim.chapter}.html" + (f"#judged-{claim.id}" if machine is not None else "")
    measured = f"<p>Measured on {escape(machine)}.</p>" if machine else ""
    diagram = "Cost table" if claim.diagram == "cost" else f"Diagram {claim.diagram}"
    return (f'<tr id="{claim.anchor}" data-diagram="{claim.diagram}" data-verdict="{claim.verdict}" '
            f'data-kind="{claim.kind}"><th scope="row"><a href="#{claim.anchor}">{claim.id}</a></th>'
            f'<td><q>{escape(claim.words)}</q><br><span class="ledger-where">{diagram}, '
            f'<a href="{box_page(claim)}">{escape(claim.box)}</a></span></td>'
            f'<td><span class="claim-{claim.verdict}"><span class="claim-verdict">{claim.verdict}</span></span><br>'
            f'<span class="ledger-where"><a href="{cell}">{claim.kind}</a></span></td>'
            f'<td><p>{escape(claim.so_instead)}</p>{measured}<details><summary>source, today, cell</summary>'
            f'<p>vLLM {claim.version}: {", ".join(source(claim, s) for s in claim.sources)}</p>'
            f'<p>Today (0.33): {escape(claim.today)}</p>'
            f'<p><code>{escape(claim.cell)}</code></p></details></td></tr>')


def box_page(claim) -> str:
    """The code page of the diagram's box, at its file."""
    name = "Cost table" if claim.diagram == "cost" else f"{claim.diagram} "
    module = next(boxes for diagram, boxes in DIAGRAMS.items() if diagram.startswith(name))[claim.box].partition(":")[0]
    path = module.replace(".", "/")
    path = f"{path}/__init__.py" if (BOOK.parent / "tpgpt2_ref" / path).is_dir() else f"{path}.py"
    room = path.rpartition("/")[0] or "."
    page = next(page for page in sorted((BOOK / "code").glob("*.md"))
                if f"{{code-room}} {room}\n" in page.read_text())
    return f"code/{page.stem}.html#{nodes.make_id(path)}"


def source(claim, text: str) -> str:
    """A line of vLLM's as a link to it, everything else as it stands."""
    version, colon, place = text.partition(": ")
    version, place = (version, place) if colon and version.replace(".", "").isdigit() else (claim.version, text)
    path, _, line = place.partition(".py:")
    if not line.isdigit() or " " in path:
        return escape(text)
    return f'<a href="{VLLM.format(version=version, path=f"vllm/{path}.py", line=line)}">{escape(text)}</a>'


def setup(app):
    app.add_directive("ledger", Ledger)
    app.add_css_file("claims.css")
    return {"version": "1", "parallel_read_safe": True}

"""List the diagrams' claims: what each says, its verdict, and what is so instead.

  python -m tpgpt2_ref claims
  python -m tpgpt2_ref claims --verdict wrong --diagram 2
"""
from __future__ import annotations

from collections import Counter
from textwrap import indent, wrap

from ..course.claims import KINDS, VERDICTS, Claim, ledger
from ..errors import UserError

HELP = "list what the diagrams claim, with a verdict on each and what is so instead"


def add_arguments(parser):
    parser.add_argument("--diagram", help="1 to 6, or cost")
    parser.add_argument("--verdict", help=", ".join(VERDICTS))
    parser.add_argument("--kind", help=", ".join(KINDS))


def run(args, world) -> dict:
    rows = [row(claim) for claim in ledger().values()]
    for name in ("diagram", "verdict", "kind"):
        if (wanted := getattr(args, name)) is not None:
            known = list(dict.fromkeys(str(row(claim)[name]) for claim in ledger().values()))
            if wanted not in known:
                raise UserError(f"no {name} {wanted!r}; there are {', '.join(known)}")
            rows = [r for r in rows if str(r[name]) == wanted]
    return {"claims": rows}


def row(claim: Claim) -> dict:
    """A claim as it is listed."""
    return {"id": claim.id, "claim": claim.words, "verdict": claim.verdict, "kind": claim.kind,
            "so_instead": claim.so_instead, "sources": claim.sources, "version": claim.version,
            "diagram": claim.diagram, "box": claim.box, "chapter": claim.chapter, "cell": claim.cell,
            "today": claim.today}


def show(result) -> str:
    lines = []
    for r in result["claims"]:
        lines += [f"{r['id']:>2}  {r['verdict']:<9}{r['claim']}",
                  indent("\n".join(wrap(r["so_instead"], 100)), " " * 13)]
    counts = Counter(r["verdict"] for r in result["claims"])
    return "\n".join([*lines, f"{len(result['claims'])} claims: "
                      + ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])])

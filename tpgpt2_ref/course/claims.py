"""The ledger: every claim of the diagrams, and `claim`, with which a chapter's cell judges one.

    claim(27, found=judge.shard()["q"])

computes the verdict from `found` by what `book/claims.toml` says of claim 27 (what the diagram drew, and how the two
are compared), shows one line, and raises if the verdict is another than the ledger's. So a verdict is never typed in a
chapter, and a chapter whose finding changes fails. Nothing here imports torch.
"""
from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from html import escape, unescape
from pathlib import Path

from ..errors import UserError

LEDGER = Path(__file__).parents[2] / "book" / "claims.toml"
VERDICTS = ("right", "wrong", "outdated", "vague")
KINDS = ("computed", "measured", "cited")
HOLDS = ("equals", "within", "cases", "versions")
LINE = r'data-claim="(\d+)" data-verdict="(\w+)" data-kind="\w+" data-machine="([^"]*)"'
VERSION = "0.11.0"  # the vLLM that the diagrams describe


class ClaimError(UserError):
    """What was found does not come to the ledger's verdict, or can't be judged."""


@dataclass(frozen=True)
class Claim:
    """One row of the ledger. `book/claims.toml` says what each field means."""

    id: int
    diagram: int | str
    box: str
    words: str
    verdict: str
    kind: str
    holds: str
    drawn: object
    so_instead: str
    today: str
    sources: list[str]
    chapter: str
    cell: str
    cases: list[str] = field(default_factory=list)
    version: str = VERSION

    def judge(self, found) -> str:
        """The verdict that `found` comes to. Raises ClaimError for what is no finding of this claim's form."""
        found = plain(found)
        if self.holds == "equals":
            return "right" if same(found, self.drawn) else "wrong"
        if self.holds == "within":
            least, most = self.drawn
            return of_several([least <= x <= most for x in (found if isinstance(found, list) else [found])])
        if not isinstance(found, dict):
            raise ClaimError(f"claim {self.id} wants {'cases' if self.holds == 'cases' else 'versions'} as a dict, "
                             f"not {in_words(found)}")
        if self.holds == "cases":
            if found.keys() != set(self.cases):
                raise ClaimError(f"claim {self.id} wants the cases {', '.join(self.cases)}; found {', '.join(found)}")
            return of_several([same(value, self.drawn) for value in found.values()])
        then, later = found.get(self.version), [value for version, value in found.items() if version != self.version]
        if self.version not in found or not later:
            raise ClaimError(f"claim {self.id} wants {self.version} and a later version; found {', '.join(found)}")
        now = later[-1]
        return "wrong" if not same(then, self.drawn) else "right" if same(now, self.drawn) else "outdated"

    @property
    def anchor(self) -> str:
        return f"claim-{self.id}"

    def told(self, found) -> str:
        """What was drawn and what was found, as a line shows them."""
        words = in_words(found)
        if self.holds == "within" and isinstance(found, list):
            least, most = self.drawn
            words = f"{words}, {sum(least <= x <= most for x in found)} of them within"
        drawn = " to ".join(map(str, self.drawn)) if self.holds == "within" else in_words(self.drawn)
        return f"drawn {drawn}, found {words}"


def same(found, drawn) -> bool:
    """Equal, and a yes is no 1."""
    return found == drawn and isinstance(found, bool) == isinstance(drawn, bool)


def of_several(held: list[bool]) -> str:
    if not held:
        raise ClaimError("nothing was found")
    return "right" if all(held) else "vague" if any(held) else "wrong"


@dataclass(frozen=True)
class Judgement:
    """A claim, what was found, and the verdict that it came to; a notebook shows it as one line."""

    claim: Claim
    found: object
    verdict: str
    machine: str | None

    def __repr__(self) -> str:
        where = f" Measured on {self.machine}." if self.machine else ""
        return (f"claim {self.claim.id}, {self.verdict}: {self.claim.words}\n"
                f"  {self.claim.told(self.found)}. {self.claim.so_instead}{where}")

    def _repr_html_(self) -> str:
        c, machine = self.claim, escape(self.machine or "", quote=True)
        where = f' <span class="claim-machine">Measured on {machine}.</span>' if machine else ""
        return (f'<div class="claim claim-{self.verdict}" id="judged-{c.id}" data-claim="{c.id}" '
                f'data-verdict="{self.verdict}" data-kind="{c.kind}" data-machine="{machine}">'
                f'<a class="claim-id" href="ledger.html#{c.anchor}" title="claim {c.id} in the ledger">{c.id}</a> '
                f'<span class="claim-verdict">{self.verdict}</span> <q>{escape(c.words)}</q> '
                f'<span class="claim-found">{escape(c.told(self.found))}.</span> '
                f'<span class="claim-instead">{escape(c.so_instead)}</span>{where}</div>')


@cache
def ledger() -> dict[int, Claim]:
    """{id: claim}, in order. Raises ClaimError for an entry that is not whole."""
    found = {}
    for entry in tomllib.loads(LEDGER.read_text())["claim"]:
        try:
            claim = Claim(**entry)
        except TypeError as e:
            raise ClaimError(f"{LEDGER.name}: claim {entry.get('id', '?')}: {e}") from e
        for name, known in (("verdict", VERDICTS), ("kind", KINDS), ("holds", HOLDS)):
            if getattr(claim, name) not in known:
                raise ClaimError(f"{LEDGER.name}: claim {claim.id}: {name} is {getattr(claim, name)!r}, none of "
                                 f"{', '.join(known)}")
        if claim.id in found:
            raise ClaimError(f"{LEDGER.name}: claim {claim.id} is there twice")
        found[claim.id] = claim
    return found


def judged(number: int, found, machine: str | None = None) -> Judgement:
    """Judge a claim by what was found, and compare with the ledger.

    found    a value of the form that the claim's `holds` asks for; a `judge.Measured` brings its machine
    machine  where it was measured, in words: a claim that is measured needs one
    Raises ClaimError if the verdict is another than the ledger's.
    """
    if number not in ledger():
        raise ClaimError(f"there is no claim {number}; the ledger has 1 to {max(ledger())}")
    claim = ledger()[number]
    machine, found = machine or getattr(found, "machine", None), getattr(found, "value", found)
    if claim.kind == "measured" and not machine:
        raise ClaimError(f"claim {number} is measured: say on which machine")
    verdict = claim.judge(found)
    if verdict != claim.verdict:
        raise ClaimError(f"claim {number} comes out {verdict}, the ledger says {claim.verdict}: found "
                         f"{in_words(found)}, drawn {in_words(claim.drawn)}. Look at what changed, and put right "
                         f"{LEDGER.name} or the finding")
    return Judgement(claim, found, verdict, machine)


def claim(number: int, *, found, machine: str | None = None) -> None:
    """Judge a claim in a chapter, and show the line: see `judged`."""
    from IPython.display import display

    display(judged(number, found, machine))


def judged_in(notebook: Path | str) -> dict[int, tuple[str, str]]:
    """{claim: (verdict, machine)} of the lines that a notebook's stored outputs hold; machine "" where none is named.

    Raises ClaimError if it shows one claim with two verdicts, or one that the ledger does not have.
    """
    found: dict[int, tuple[str, str]] = {}
    for cell in json.loads(Path(notebook).read_text())["cells"]:
        for output in cell.get("outputs", ()):
            html = "".join(output.get("data", {}).get("text/html", ""))
            for number, verdict, machine in re.findall(LINE, html):
                number = int(number)
                if number not in ledger() or found.get(number, (verdict,))[0] != verdict:
                    raise ClaimError(f"{Path(notebook).name} shows claim {number} as {verdict}: run it again")
                found[number] = verdict, unescape(machine)
    return found


def agree(chapters) -> dict[int, str]:
    """{claim: machine} of what the chapters' stored outputs judge, each claim in its own chapter.

    A chapter that judges one claim must judge all of its own. Raises ClaimError for one that is missing, and for a
    verdict that is not the ledger's.
    """
    found = {}
    for path in map(Path, chapters):
        shown = judged_in(path)
        for number, (verdict, machine) in shown.items():
            if verdict != ledger()[number].verdict:
                raise ClaimError(f"{path.name} shows claim {number} as {verdict}, {LEDGER.name} says "
                                 f"{ledger()[number].verdict}: run the chapter again")
            if ledger()[number].chapter == path.stem:
                found[number] = machine
        missing = [c.id for c in ledger().values() if c.chapter == path.stem and c.id not in shown]
        if shown and missing:
            raise ClaimError(f"{path.name} judges no claim {', '.join(map(str, missing))}, which {LEDGER.name} says "
                             "it does")
    return found


def plain(value):
    """Tuples as lists, at any depth, as TOML has them; whole floats compare as they are."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def in_words(value, most: int = 12) -> str:
    """A found or drawn value, as a line shows it."""
    value = plain(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {in_words(item, most)}" for key, item in value.items())
    if isinstance(value, list):
        if len(value) > most and all(isinstance(x, int | float) for x in value):
            return f"{in_words(min(value))} to {in_words(max(value))} ({len(value)} values)"
        return f"[{', '.join(in_words(x, most) for x in value)}]" if value else "none"
    return "nothing" if value is None else str(value)

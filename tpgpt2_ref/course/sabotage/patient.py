"""What the reader holds: a patient with instruments, points, a diagnosis. What it has only the ranks know."""
from __future__ import annotations

import secrets
from html import escape

from ...errors import UserError
from ..exercises import progress
from ..exercises.grader import Verdict, own_ranks, started_ranks

POINTS, WRONG = 10, 3  # at admission; what a wrong diagnosis costs. An instrument costs one
NAMES = {
    "healthy": "nothing is wrong",
    "naive-qkv-half": "a fused QKV matrix cut in the middle",
    "bias-twice": "a bias added on both ranks",
    "mlp-sum-missing": "an MLP whose parts nobody sums",
    "gather-for-sum": "a gather where a sum was meant",
    "sum-before-gelu": "a sum before GELU",
    "foreign-kv": "the keys and values of the other rank's heads",
    "unpadded-vocabulary": "a vocabulary dealt without padding",
    "embedding-offset": "an embedding that is off by one shard",
    "calls-in-another-order": "ranks that call in another order",
    "stale-push": "a sum that took an old word from its mailbox",
    "shard-loaded-twice": "a shard that both ranks loaded",
}
# What the instruments show where a sign has this value: {value: words}
SIGNS = {
    "hangs": {True: "the ranks wait for one another for ever",
              False: "the forward ends"},
    "repeats": {True: "the same prompt gives the same logits again",
                False: "the same prompt gives other logits the second time"},
    "shapes": {"right": "the logits have one number for every token of the vocabulary",
               "narrow": "the logits have fewer numbers than the vocabulary has tokens"},
    "sums": {-1: "a forward has one all-reduce too few",
             0: "a forward has all its all-reduces, and no more",
             1: "a forward has one all-reduce too many"},
    "gathers": {0: "a forward has its one all-gather, and no more",
                1: "a forward has a second all-gather"},
    "begins": {"nowhere": "no output is wrong",
               "embedding": "the error begins in the embedding",
               "attention": "the error begins in an attention",
               "MLP": "the error begins in an MLP",
               "logits": "the error begins in the logits"},
    "alike": {True: "where the error begins, it is the same for every token",
              False: "where the error begins, it differs from token to token"},
    "cache": {"right": "where the error begins, the cached keys are right",
              "foreign": "where the error begins, a rank has cached the other rank's keys",
              "wrong": "where the error begins, a rank has cached keys that are nobody's"},
    "agree": {True: "the ranks agree everywhere",
              False: "the ranks disagree where all should hold the same"},
}


def bugs() -> dict[str, str]:
    """The names to choose from, with a few words each."""
    return dict(NAMES)


def admit(seed: int | None = None, ranks=None) -> Patient:
    """Take in the patient of that number; None: one that nobody has seen.

    ranks  two `Ranks` to run on; None: the notebook's own if they are two, or CPU ranks of the lab's
    """
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise UserError(f"admit({seed!r}): a patient has a whole number, such as 7")
    return Patient(secrets.randbelow(1 << 32) if seed is None else seed, ranks)


class Reading:
    """What an instrument shows: a table."""

    def __init__(self, title: str, rows: list[dict], note: str):
        self.title, self.rows, self.note = title, rows, note

    def cells(self) -> list[list[str]]:
        """Text by row, the heads first."""
        return [list(row) for row in self.rows[:1]] + [[show(value) for value in row.values()] for row in self.rows]

    def __repr__(self) -> str:
        cells = self.cells()
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in cells]
        return "\n".join([self.title, *lines, self.note])

    def _repr_html_(self) -> str:
        head, *body = self.cells() or [[]]
        table = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in body)
        top = "".join(f"<th>{escape(c)}</th>" for c in head)
        return (f"<p><strong>{escape(self.title)}</strong></p><table><tr>{top}</tr>{table}</table>"
                f"<p>{escape(self.note)}</p>")


class Patient:
    """Two ranks of one small GPT-2 with at most one bug. Each instrument costs a point the first time it is used."""

    def __init__(self, seed: int, ranks=None):
        self.seed, self.points, self.used, self.closed = seed, POINTS, {}, False
        self._ranks = ranks

    def __repr__(self) -> str:
        return (f"Patient {self.seed}: GPT-2 of 3 layers, 4 heads of 16, 257 tokens, fp32, on 2 ranks. It reads two "
                f"prompts. {self.points} points.")

    def error_by_layer(self) -> Reading:
        """How far each place's output is from that of one process with the whole model, in order."""
        return self._use("error_by_layer", "Error of each output, as a part of its largest number")

    def collectives(self) -> Reading:
        """How often a forward calls each collective."""
        return self._use("collectives", "Collectives of one forward")

    def bytes(self) -> Reading:
        """Every collective of a forward, in order: its shape and the bytes that a rank puts in."""
        return self._use("bytes", "Every collective of one forward")

    def shapes(self) -> Reading:
        """Each matrix of the ends and of layer 0, and the logits, on each rank."""
        return self._use("shapes", "Shapes by rank")

    def cache(self) -> Reading:
        """How far a rank's cached keys are from those of its own heads, and from another rank's."""
        return self._use("cache", "Cached keys: distance from those that belong there")

    def hang_report(self) -> Reading:
        """What each rank is about to call where they part."""
        return self._use("hang_report", "Hang report")

    def compare_ranks(self) -> Reading:
        """How far the ranks are apart at places where all should hold the same."""
        return self._use("compare_ranks", "Difference between the ranks")

    def repeat(self) -> Reading:
        """The same prompt a second time: how far the logits are from the first."""
        return self._use("repeat", "The same forward again")

    def diagnose(self, name: str) -> Verdict:
        """Right, or what speaks against it. A wrong diagnosis costs three points; `...` is none yet."""
        if name is ...:
            return Verdict(False, f"{self} sabotage.bugs() lists what it can have.")
        if name not in NAMES:
            raise UserError(f"no bug {name!r}; sabotage.bugs() lists them: {', '.join(NAMES)}")
        said = self._ask(f"judged({self.seed}, {name!r}, world)")
        if said["right"]:
            where = f" The chapter about it: {said['chapter']}." if said["chapter"] else ""
            if not self.closed:
                self.closed = True
                past = progress.read()["lab"].get(str(self.seed))
                if not (isinstance(past, dict) and isinstance(past.get("points"), int)):  # the first score stays
                    progress.note("lab", str(self.seed), {"points": self.points, "right": True})
            return Verdict(True, f"{said['what']}{where} {self.points} of {POINTS} points.")
        if not self.closed:
            self.points = max(0, self.points - WRONG)
        return Verdict(False, f"If it were {name}, you would see that {SIGNS[said['sign']][said['claimed']]}. "
                              f"That is not so here. {self.points} points left.")

    def _use(self, instrument: str, title: str) -> Reading:
        if instrument not in self.used:
            rows, tokens = self._ask(f"reading({self.seed}, {instrument!r}, world)")
            self.points = max(0, self.points - (not self.closed))
            note = f"{tokens} tokens in two prompts."
            if rows is None:
                note = "The forward does not end, so there is nothing to read."
            elif not rows:
                note = "No hang: the forward ends on all ranks."
            self.used[instrument] = Reading(title, rows or [], note)
        seen = self.used[instrument]
        return Reading(seen.title, seen.rows, f"{seen.note} {self.points} points left.")

    def _ask(self, call: str):
        """The answer of rank 0. Ranks are found, or started, when the first instrument is used."""
        if self._ranks is None:
            found = started_ranks()
            self._ranks = found if found is not None and found.size == 2 else own_ranks(2)
        return self._ranks.get(f"__import__('tpgpt2_ref.course.sabotage.ward', fromlist=['_']).{call}", timeout=60)[0]


def show(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1e}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

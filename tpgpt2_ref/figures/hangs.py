"""The page on hangs: how often ranks recovered from each fault of the campaign, and how soon they said why."""
from __future__ import annotations

from ..recorded import results
from . import rows


def faults() -> None:
    """A row a fault, of every machine that ran the campaign: tries, recovered, seconds to the message."""
    for run in results.recorded("faults"):
        cell = [r for r in run.rows if r.get("group") == "cell"]
        slow = max(cell, key=lambda r: r["message_s_worst"])
        lines = [[r["fault"], f"{r['recovered']} of {r['tries']}", f"{r['message_s_median']:.1f}",
                  f"{r['message_s_worst']:.1f}", f"{r['right_s_median']:.1f}"]
                 for r in sorted(cell, key=lambda r: -r["message_s_worst"])[:10]]
        rows.table(["fault in a cell", "recovered", "message after, s", "worst", "right ranks, s later"], lines,
                   f"The ten of {len(cell)} faults that took longest to be told (worst: {slow['fault']}); "
                   f"{sum(r['recovered'] for r in run.rows)} of {sum(r['tries'] for r in run.rows)} tries of all "
                   f"{len(run.rows)} kinds recovered. " + not_always(run.rows) + beside(cell) + rows.recorded_on(run))


def not_always(of: list[dict]) -> str:
    """The kinds that did not recover every time, by name."""
    failed = [f"{r['fault']} ({r['recovered']} of {r['tries']})" for r in of if r["recovered"] < r["tries"]]
    return f"Not every time: {', '.join(failed)}. " if failed else ""


def beside(of: list[dict]) -> str:
    """How many tries shared the machine, which makes each of them slower."""
    most = max(r.get("side_by_side", 1) for r in of)
    return f"Up to {most} tries ran side by side. " if most > 1 else ""

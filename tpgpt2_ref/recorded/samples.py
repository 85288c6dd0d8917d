"""The samples behind a row: their spread, what they make of the bus, and those of several runs together."""
from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles

from ..errors import UserError
from . import results

CASE = ("op", "path", "world", "bytes", "dtype", "graph", "calls", "link")  # rows of several runs that are pooled
SAME = ("device", "count", "links", "cpu", "torch", "cuda", "nccl", "driver")  # of a machine, in runs that are pooled


def spread(samples: list[float], name: str = "us") -> dict:
    """{name_median, name_p10, name_p90} of one sample or more, in their unit, to three digits behind the point."""
    p10, *_, p90 = quantiles(samples * 2 if len(samples) == 1 else samples, n=10, method="inclusive")
    return {f"{name}_median": round(median(samples), 3), f"{name}_p10": round(p10, 3), f"{name}_p90": round(p90, 3)}


def bandwidth(op: str, nbytes: int, us: float, n: int) -> dict:
    """GB/s as nccl-tests defines it: what the algorithm sees, and what the bus carries."""
    algbw = nbytes * (n if op == "all_gather" else 1) / us / 1e3
    bus = {"all_reduce": 2 * (n - 1) / n, "broadcast": 1}.get(op, (n - 1) / n)
    return {"algbw_gb_per_s": round(algbw, 6), "busbw_gb_per_s": round(algbw * bus, 6)}


def before(folder: str, machine: dict) -> tuple[results.Run, list[list[float]]] | None:
    """What that folder has of this machine, with its samples: None, or UserError if nothing can be added to it."""
    path = Path(folder) / machine["slug"] / "collectives.json"
    if not path.exists():
        return None
    run = results.load(path)
    comparable(run.machine, machine)
    return run, results.load_samples(path)


def comparable(a: dict, b: dict) -> None:
    """Raise UserError if runs of two machine cards can't be pooled."""
    for field in SAME:
        if a.get(field) != b.get(field):
            raise UserError(f"the runs differ in {field} ({a.get(field)} and {b.get(field)}): record anew, without "
                            "--add")


def pool(runs: list[tuple[results.Run, list[list[float]]]]) -> tuple[results.Run, list[list[float]]]:
    """Runs of one machine and their samples, oldest first, as one: a row's numbers are those of all its samples.

    The date and the commit are the last run's; a row names its own commits where they are others. Raises UserError if
    the runs are of machines, or of software, that differ.
    """
    results.same_machine([run for run, _ in runs])
    rows, samples, commits = {}, defaultdict(list), defaultdict(list)
    last, _ = runs[-1]
    for run, of_rows in runs:
        comparable(run.machine, last.machine)
        for row, us in zip(run.rows, of_rows, strict=True):
            case = tuple(row.get(field) for field in CASE)
            rows.setdefault(case, row)
            samples[case] += us
            commits[case] += [c for c in row.get("commit", run.commit).split(", ") if c not in commits[case]]
    out = []
    for case, row in rows.items():
        row = {k: v for k, v in row.items() if k != "commit"} | spread(samples[case])
        row |= bandwidth(row["op"], row["bytes"], row["us_median"], row["world"])
        out.append(row if commits[case] == [last.commit] else row | {"commit": ", ".join(commits[case])})
    return replace(last, rows=out), [samples[case] for case in rows]

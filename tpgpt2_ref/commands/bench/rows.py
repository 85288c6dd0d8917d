"""What `bench decode` and `bench prefill` share: rows kept as they come, and shown as a table."""
from __future__ import annotations

from collections.abc import Iterable

from ...recorded.results import Run, save


def record(result: dict, args, world, measured: Iterable[tuple[dict, list[float]]]) -> None:
    """Put each row into the result; with --record save all rows after each: a run cut short leaves what it has."""
    samples = []
    for row, us in measured:
        result["rows"].append(row)
        samples.append(us)
        if args.record and world.rank == 0:
            run = Run(result["bench"], result["machine"], result["rows"])
            result["saved"] = str(save(run, args.record, samples))


def table(result: dict, width: int, times: dict[str, str]) -> str:
    """The rows by what they are of, then microseconds. times: {heading: field}; width of the rung's name."""
    head = f"{'engine':14}{'rung':{width}}{'tp':>3} {'sum':10}{'batch':>6}{'tokens':>8}"
    lines = [head + "".join(f"{heading:>12}" for heading in times)]
    for r in result["rows"]:
        us = "".join(f"{'-' if r[field] is None else format(r[field], '.1f'):>12}" for field in times.values())
        lines.append(f"{r['engine']:14}{r['rung']:{width}}{r['tp']:>3} {r['sum']:10}{r['batch']:>6}"
                     f"{r['prompt_len']:>8}{us}")
    if result["why_eager"]:
        lines.append(f"eager only: {result['why_eager']}")
    return "\n".join([*lines, *([f"saved {result['saved']}"] if "saved" in result else [])])

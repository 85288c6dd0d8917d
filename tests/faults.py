"""The fault campaign: every way in which ranks were ever lost, so many times each, and what became of them.

    python tests/faults.py --tries 20                      all kinds, on CPU ranks (gloo)
    python tests/faults.py --device cuda --tries 10 --workers 8        on GPUs (NCCL), eight tries side by side
    python tests/faults.py --only 'cell:*,interrupt:*' --minutes 8 --out FOLDER
    python tests/faults.py --list

Writes FOLDER/<machine>/faults.json (default: the book's results), a row a kind: how often the next cell met ranks that
sum rightly, or nothing was left, or one line was said; how often the message named the fault; seconds to the message
and from there to right ranks, and how many tries ran side by side, which makes all of them slower. A second run with
other kinds adds its rows.
"""
from __future__ import annotations

import argparse
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.fault_kinds import KINDS, Kind  # noqa: E402
from tests.fault_workers import side_by_side  # noqa: E402
from tpgpt2_ref.bench.two_hosts import missing  # noqa: E402
from tpgpt2_ref.errors import UserError  # noqa: E402
from tpgpt2_ref.notebook import Ranks  # noqa: E402
from tpgpt2_ref.recorded import results  # noqa: E402

RIGHT = "__import__('tpgpt2_ref.parallel.collectives', fromlist=['']).all_reduce(torch.full((3,), world.rank + 1.0, " \
        "device=world.device), world).tolist()"
MALFORMED_A_TRY = 50  # inputs


@dataclass
class Stage:
    """Where kinds play: the ranks, fresh ones where a kind has ended them, and chance that can be repeated."""

    device: str
    random: random.Random
    place: str
    ranks: Ranks | None = None
    in_this_process: object = None
    message_s: float | None = None  # what a kind has measured itself

    def fresh(self) -> None:
        if self.ranks is not None:
            self.ranks.close()
        self.ranks = Ranks(2, device=self.device)


def one_try(kind: Kind, stage: Stage) -> dict:
    """{"recovered", "said", "message_s", "right_s", "failure"} of one fault."""
    if kind.group in ("cell", "interrupt", "around") and stage.ranks is None:
        stage.fresh()
    begin, failure, stage.message_s = time.monotonic(), None, None
    text = kind.run(stage)
    message_s = time.monotonic() - begin if stage.message_s is None else stage.message_s
    if kind.group in ("leak", "stranger", "command", "malformed"):
        return {"recovered": text is None, "said": True, "message_s": message_s, "right_s": None,
                "failure": text and f"{kind.name}: {text}"}
    named = bool(kind.says.search(text or "")) if kind.says.pattern else text is None
    begin = time.monotonic()
    try:
        if kind.ends_ranks:
            stage.fresh()
        got = stage.ranks.get(RIGHT, timeout=60.0)
    except (Exception, KeyboardInterrupt) as e:
        got = f"{type(e).__name__}: {e}"
    right_s, recovered = time.monotonic() - begin, got == [[3.0] * 3] * 2
    if not (recovered and named):
        failure = f"{kind.name}: said {text!r}, then {got!r}"
    if not recovered and not kind.ends_ranks:
        stage.fresh()
    return {"recovered": recovered, "said": named, "message_s": message_s, "right_s": right_s, "failure": failure}


class Worker:
    """Tries by name, one after the other, on a stage of its own; None is the end."""

    def __init__(self, device: str, seed: int, number: int = 0):
        self.folder = tempfile.TemporaryDirectory()
        self.stage = Stage(device, random.Random(seed + number), self.folder.name, in_this_process=command_line())

    def __call__(self, name: str | None) -> dict | None:
        if name is not None:
            return one_try(next(kind for kind in KINDS if f"{kind.group}:{kind.name}" == name), self.stage)
        if self.stage.ranks is not None:
            self.stage.ranks.close()
        self.folder.cleanup()


def one_after_the_other(names: list[str], work: Worker, end: float) -> Iterator[tuple[str, dict]]:
    for name in names:
        if time.monotonic() < end:
            yield name, work(name)
    work(None)


def row_of(kind: Kind, device: str, done: list[dict], workers: int) -> dict:
    row = {"fault": kind.name, "group": kind.group, "device": device, "tries": len(done),
           "recovered": sum(t["recovered"] for t in done), "said": sum(t["said"] for t in done)}
    for what in ("message_s", "right_s"):
        times = [t[what] for t in done if t[what] is not None]
        row[f"{what}_median"] = round(median(times), 3) if times else None
        row[f"{what}_worst"] = round(max(times), 3) if times else None
    row["load"] = round(os.getloadavg()[0], 1)  # of this machine meanwhile: seconds grow with it
    row["side_by_side"] = workers
    return row


def count(kind: Kind, tries: int) -> int:
    return max(1, round(tries * (MALFORMED_A_TRY if kind.group == "malformed" else kind.share)))


def campaign(kinds: list[Kind], device: str, tries: int, minutes: float, seed: int, workers: int):
    """(rows, failures). Several workers take a try of every kind before they take second ones."""
    end, done = time.monotonic() + 60 * minutes, {f"{kind.group}:{kind.name}": [] for kind in kinds}
    names = [name for name, kind in zip(done, kinds) for _ in range(count(kind, tries))]
    begin = partial(Worker, device, seed)
    if workers > 1:
        names = [name for i in range(max(count(kind, tries) for kind in kinds))
                 for name, kind in zip(done, kinds) if i < count(kind, tries)]
    results = side_by_side(names, workers, begin, end) if workers > 1 else one_after_the_other(names, begin(), end)
    rows, failures, by_name = [], [], dict(zip(done, kinds))
    for name, result in results:
        done[name].append(result)
        if result["failure"]:
            failures.append(result["failure"])
            print(result["failure"], flush=True)
        if len(done[name]) == count(by_name[name], tries):
            rows.append(told(row_of(by_name[name], device, done[name], workers)))
    for name, kind in by_name.items():
        if not done[name]:
            print(f"left out, the time is up: {kind.name}", flush=True)
        elif len(done[name]) < count(kind, tries):
            rows.append(told(row_of(kind, device, done[name], workers)))
    return rows, failures


def told(row: dict) -> dict:
    right = "" if row["right_s_worst"] is None else f"{row['right_s_median']:9.2f}{row['right_s_worst']:8.2f}"
    print(f"{row['fault']:46}{row['recovered']:4} of {row['tries']:<4} named {row['said']:<4}"
          f"{row['message_s_median']:8.2f}{row['message_s_worst']:8.2f}{right}", flush=True)
    return row


def keep(rows: list[dict], folder: Path) -> Path:
    """Write the rows, beside those of other kinds that the file has already."""
    machine = results.machine_card()
    run = results.stamped(results.Run("faults", machine, rows))
    path = folder / machine["slug"] / "faults.json"
    if path.exists():
        before = results.load(path)
        again = {(row["fault"], row["device"]) for row in rows}
        kept = [row if before.commit == run.commit else {"commit": before.commit, **row} for row in before.rows
                if (row["fault"], row["device"]) not in again]
        run = results.Run("faults", machine, kept + rows, run.recorded_at, run.commit)
    return results.write(run, path)


def command_line():
    """How the tests run a command in this process: (status, stdout, stderr)."""
    spec = importlib.util.spec_from_file_location("tpgpt2_ref.tests.conftest", ROOT / "tpgpt2_ref/tests/conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.in_this_process


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tries", type=int, default=10, metavar="N", help="of each kind (default: 10); of "
                        f"malformed inputs {MALFORMED_A_TRY} times as many")
    parser.add_argument("--only", metavar="GROUP:NAME,…", help="kinds, with * for any letters: 'cell:*,leak:*kill*'")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M", help="stop after so long")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="tries side by side, each on ranks "
                        "of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=results.BOOK_RESULTS, metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="print the kinds and stop")
    args = parser.parse_args(argv)
    kinds = [kind for kind in KINDS if args.device in kind.devices and (args.only is None or any(
        fnmatch(f"{kind.group}:{kind.name}", wanted) for wanted in args.only.split(",")))]
    if any(kind.group == "stranger" for kind in kinds) and (reason := missing()):
        print(f"left out: reached from another host ({reason})")
        kinds = [kind for kind in kinds if kind.group != "stranger"]
    if args.list or not kinds:
        print("\n".join(f"{kind.group}:{kind.name}" for kind in kinds) or f"no kind is called {args.only}")
        return 0 if kinds else 2
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    rows, failures = campaign(kinds, args.device, args.tries, args.minutes, args.seed, args.workers)
    try:
        print(f"kept in {keep(rows, args.out)}")
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{len(failures)} tries failed" + "".join(f"\n{failure}" for failure in failures))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())

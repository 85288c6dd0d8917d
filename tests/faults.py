"""The fault campaign: every way in which ranks were ever lost, so many times each, and what became of them.

    python tests/faults.py --tries 20                      all kinds, on CPU ranks (gloo)
    python tests/faults.py --device cuda --tries 10        on GPUs (NCCL)
    python tests/faults.py --only 'cell:*,interrupt:*' --minutes 8 --out FOLDER
    python tests/faults.py --list

Writes FOLDER/<machine>/faults.json (default: the book's results), a row a kind: how often the next cell met ranks that
sum rightly, or nothing was left, or one line was said; how often the message named the fault; seconds to the message
and from there to right ranks. A second run with other kinds adds its rows.
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
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.fault_kinds import KINDS, Kind  # noqa: E402
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
    failures: list[str] = field(default_factory=list)

    def fresh(self) -> None:
        if self.ranks is not None:
            self.ranks.close()
        self.ranks = Ranks(2, device=self.device)


def one_try(kind: Kind, stage: Stage) -> dict:
    """{"recovered", "said", "message_s", "right_s"} of one fault."""
    begin = time.monotonic()
    text = kind.run(stage)
    message_s = time.monotonic() - begin
    if kind.group in ("leak", "command", "malformed"):
        if text is not None:
            stage.failures.append(f"{kind.name}: {text}")
        return {"recovered": text is None, "said": True, "message_s": message_s, "right_s": None}
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
        stage.failures.append(f"{kind.name}: said {text!r}, then {got!r}")
    if not recovered and not kind.ends_ranks:
        stage.fresh()
    return {"recovered": recovered, "said": named, "message_s": message_s, "right_s": right_s}


def several(kind: Kind, stage: Stage, tries: int, end: float) -> dict | None:
    """A row of the results; None if the time was up before the first try."""
    done = []
    while len(done) < tries and time.monotonic() < end:
        done.append(one_try(kind, stage))
    if not done:
        return None
    row = {"fault": kind.name, "group": kind.group, "device": stage.device, "tries": len(done),
           "recovered": sum(t["recovered"] for t in done), "said": sum(t["said"] for t in done)}
    for what in ("message_s", "right_s"):
        times = [t[what] for t in done if t[what] is not None]
        row[f"{what}_median"] = round(median(times), 3) if times else None
        row[f"{what}_worst"] = round(max(times), 3) if times else None
    row["load"] = round(os.getloadavg()[0], 1)  # of this machine meanwhile: seconds grow with it
    return row


def campaign(kinds: list[Kind], stage: Stage, tries: int, minutes: float) -> list[dict]:
    end, rows = time.monotonic() + 60 * minutes, []
    if any(kind.group in ("cell", "interrupt", "around") for kind in kinds):
        stage.fresh()
    for kind in kinds:
        count = tries * (MALFORMED_A_TRY if kind.group == "malformed" else 1)
        row = several(kind, stage, count, end)
        if row is None:
            print(f"left out, the time is up: {kind.name}", flush=True)
            continue
        rows.append(row)
        right = "" if row["right_s_worst"] is None else f"{row['right_s_median']:9.2f}{row['right_s_worst']:8.2f}"
        print(f"{row['fault']:46}{row['recovered']:4} of {row['tries']:<4} named {row['said']:<4}"
              f"{row['message_s_median']:8.2f}{row['message_s_worst']:8.2f}{right}", flush=True)
    if stage.ranks is not None:
        stage.ranks.close()
    return rows


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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=results.BOOK_RESULTS, metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="print the kinds and stop")
    args = parser.parse_args(argv)
    kinds = [kind for kind in KINDS if args.device in kind.devices and (args.only is None or any(
        fnmatch(f"{kind.group}:{kind.name}", wanted) for wanted in args.only.split(",")))]
    if args.list or not kinds:
        print("\n".join(f"{kind.group}:{kind.name}" for kind in kinds) or f"no kind is called {args.only}")
        return 0 if kinds else 2
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    with tempfile.TemporaryDirectory() as place:
        stage = Stage(args.device, random.Random(args.seed), place, in_this_process=command_line())
        rows = campaign(kinds, stage, args.tries, args.minutes)
    try:
        print(f"kept in {keep(rows, args.out)}")
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print("\n".join(stage.failures))
    return int(bool(stage.failures))


if __name__ == "__main__":
    sys.exit(main())

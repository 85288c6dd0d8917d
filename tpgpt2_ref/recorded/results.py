"""Recorded runs: what was measured, on which machine, when, with which commit. One schema for every file.

    book/results/<machine>/<name>.json       {schema, name, machine, recorded_at, commit, rows}
    book/results/<machine>/raw/<name>.json   the samples behind each row, in the rows' order

Rows are flat, and the unit stands in a field's name. A file of another version, cut short, or with a field
missing is refused by name. A figure shows `run.label`, so that two machines are never mixed in silence.
Nothing here imports torch, so that a page can read results without it.
"""
from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from ..errors import UserError
from ..files import field, read_json, write_whole
from .machine import commit, machine_card

SCHEMA = 1
BOOK_RESULTS = Path(__file__).parents[2] / "book" / "results"

NUMBER = (int, float)
TIMES = {"us_median": NUMBER, "us_p10": NUMBER, "us_p90": NUMBER}
STEP = {"engine": str, "model": str, "dtype": str, "tp": int, "sum": str, "rung": str, "batch": int, "prompt_len": int}
# What a row of each kind must have. More fields are welcome; kinds that aren't listed need none.
ROW_FIELDS = {
    "collectives": {"op": str, "path": str, "world": int, "bytes": int, "dtype": str, "graph": bool, **TIMES,
                    "algbw_gb_per_s": NUMBER, "busbw_gb_per_s": NUMBER},
    "cost_model": {"op": str, "path": str, "world": int, "graph": bool, "from_bytes": int, "alpha_us": NUMBER,
                   "beta_us_per_byte": NUMBER, "heldout_median_error": NUMBER, "heldout_worst_error": NUMBER},
    "attention": {"backend": str, "kernel_package": str, "phase": str, "batch": int, "seq_len": int, "heads": int,
                  "head_size": int, "dtype": str, "graph": bool, **TIMES},
    "decode": {**STEP, "us_per_step_median": NUMBER, "us_per_step_p10": NUMBER, "us_per_step_p90": NUMBER},
    "faults": {"fault": str, "group": str, "device": str, "tries": int, "recovered": int, "said": int,
               "message_s_median": NUMBER, "message_s_worst": NUMBER, "right_s_median": (*NUMBER, type(None)),
               "right_s_worst": (*NUMBER, type(None))},
    "phases": {"model": str, "dtype": str, "tp": int, "batch": int, "prompt_len": int, "kernel": str, "place": str,
               "number": int, "blocks": int, "start_ns": NUMBER, "min_ns": NUMBER, "median_ns": NUMBER,
               "max_ns": NUMBER, "clock_step_ns": int},
    "prefill": {**STEP, "wall_us_median": NUMBER, "gpu_us_median": (*NUMBER, type(None))},
}
MACHINE_FIELDS = {"slug": str, "kind": str, "device": str, "count": int, "links": str, "python": str,
                  "environment": dict}


@dataclass(frozen=True)
class Run:
    """One recorded run: rows that one machine produced in one go."""

    name: str  # collectives, cost_model, attention, decode, prefill, timeline, ...
    machine: dict  # machine_card()
    rows: list[dict]
    recorded_at: str = ""  # ISO 8601, UTC; filled in by `save`
    commit: str = ""  # filled in by `save`; "unknown" outside a git checkout

    @property
    def label(self) -> str:
        """The machine in one line, as a figure's legend names it."""
        m = self.machine
        what = f"{m['count']}x {m['device']}" if m["kind"] == "cuda" else f"{m['device']}, {m['count']} cores"
        parts = [what, *(f"{k} {m[v]}" for k, v in (("torch", "torch"), ("NCCL", "nccl")) if m.get(v))]
        shared = ["ranks shared one GPU: no time here means anything"] * ("TPGPT2_SHARE_GPU" in m["environment"])
        return ", ".join([*parts, self.recorded_at[:10], *shared])

    @property
    def is_this_machine(self) -> bool:
        return self.machine["slug"] == machine_card()["slug"]


def save(run: Run, folder: Path | str, samples: list[list[float]] | None = None) -> Path:
    """Write folder/<machine>/<name>.json, whole or not at all; samples (one list a row) go beside it in raw/."""
    path = write(run, Path(folder) / run.machine["slug"] / f"{run.name}.json", samples)
    if samples is None:
        (path.parent / "raw" / path.name).unlink(missing_ok=True)  # an earlier run's are not this one's
    return path


def write(run: Run, path: Path | str, samples: list[list[float]] | None = None) -> Path:
    """Write one file to a path of your choice."""
    run, path = stamped(run), Path(path)
    validate(document := {"schema": SCHEMA, **run.__dict__}, path)
    if samples is not None and len(samples) != len(run.rows):
        raise ValueError(f"{len(samples)} lists of samples for {len(run.rows)} rows")
    _write(path, document, run.rows)
    if samples is not None:
        head = {k: document[k] for k in ("schema", "name", "recorded_at", "commit")}
        _write(path.parent / "raw" / path.name, head, [{"us": [round(x, 3) for x in s]} for s in samples])
    return path


def stamped(run: Run) -> Run:
    """The run with its date and commit: now and this checkout's, where it has none yet."""
    return replace(run, recorded_at=run.recorded_at or datetime.now(timezone.utc).isoformat(timespec="seconds"),
                   commit=run.commit or commit())


def load(path: Path | str) -> Run:
    """Read one file. Raises UserError naming the file and the field for anything that is not this schema."""
    validate(document := read_json(path), path)
    return Run(**{k: v for k, v in document.items() if k != "schema"})


def load_samples(path: Path | str) -> list[list[float]]:
    """The samples behind each row of that file. Raises UserError if there are none, or another run's."""
    raw, run = Path(path).parent / "raw" / Path(path).name, load(path)
    try:
        document = read_json(raw)
        rows = field(document, "rows", list, raw)
        samples = [field(field(rows, i, dict, raw, "row "), "us", list, raw, f"rows[{i}].") for i in range(len(rows))]
        for i, times in enumerate(samples):
            for k in range(len(times)):
                field(times, k, float, raw, f"rows[{i}].us, number ")
    except UserError as e:
        raise UserError(f"cannot read the samples of {path} ({e}): record it again") from e
    if (document.get("recorded_at"), len(samples)) != (run.recorded_at, len(run.rows)):
        raise UserError(f"the samples in {raw} are not those of {path}: record it again")
    return samples


def recorded(name: str, folder: Path | str = BOOK_RESULTS) -> list[Run]:
    """All recorded runs of that name, by machine. Empty where none was recorded."""
    return [load(path) for path in sorted(Path(folder).glob(f"*/{name}.json"))]


def one_machine(runs: list[Run]) -> Run:
    """The rows of runs of one kind as one run, the first's; a row of another commit names it. Refuses to mix machines.
    """
    same_machine(runs)
    return replace(runs[0], rows=[row if run.commit == runs[0].commit else {**row, "commit": run.commit}
                                  for run in runs for row in run.rows])


def same_machine(runs: list[Run]) -> None:
    if len(slugs := {run.machine["slug"] for run in runs}) > 1:
        raise UserError(f"these results are of different machines ({', '.join(sorted(slugs))}): take one machine's")


def validate(document, where) -> None:
    """Raise UserError for the first field that is not as the schema wants it."""
    field(document, "schema", int, where)
    if document["schema"] != SCHEMA:
        raise UserError(f"{where}: schema is {document['schema']}, this version reads {SCHEMA}: record it again, "
                        "or use the version that wrote it")
    for name, kind in (("name", str), ("machine", dict), ("recorded_at", str), ("commit", str), ("rows", list)):
        field(document, name, kind, where)
    if extra := document.keys() - {"schema", "name", "machine", "recorded_at", "commit", "rows"}:
        raise UserError(f"{where}: {min(extra)} is no field of a results file")
    for name, kind in MACHINE_FIELDS.items():
        field(document["machine"], name, kind, where, "machine.")
    try:
        datetime.fromisoformat(document["recorded_at"])
    except ValueError as e:
        raise UserError(f"{where}: recorded_at is {document['recorded_at']!r}, which is no ISO date") from e
    if not document["rows"]:
        raise UserError(f"{where}: rows is empty: nothing was recorded")
    for i, row in enumerate(document["rows"]):
        if not isinstance(row, dict):
            raise UserError(f"{where}: rows[{i}] is {row!r}, which is no object")
        for name, kind in ROW_FIELDS.get(document["name"], {}).items():
            field(row, name, kind, where, f"rows[{i}].")
        for name in row:  # rows are flat
            field(row, name, (int, float, str, bool, type(None)), where, f"rows[{i}].")


def _write(path: Path, head: dict, rows: list[dict]) -> None:
    """JSON with one row a line, so that a change of one row is a change of one line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from e
    head = json.dumps({k: v for k, v in head.items() if k != "rows"}, indent=1)[:-2]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    write_whole(path, f'{head},\n "rows": [\n{lines}\n ]\n}}\n')

"""What a reader has done, in a file of her own: tries and successes by exercise, scores by patient. Imports no torch.

A file that can't be read or written is no error: the exercises work, and nothing is remembered.
"""
from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from ...errors import UserError
from ...files import read_json, write_whole


def progress_file() -> Path:
    """TPGPT2_PROGRESS, or progress.json in .tpgpt2 of the reader's own folder."""
    return Path(os.environ.get("TPGPT2_PROGRESS") or Path.home() / ".tpgpt2" / "progress.json")


def read() -> dict:
    """{"exercises": {name: {"tries": n, "right": bool}}, "lab": {seed: {"points": n, "right": bool}}}"""
    try:
        found = read_json(progress_file())
    except (UserError, RuntimeError):  # RuntimeError: a machine on which the reader has no folder
        found = {}
    return {part: found[part] if isinstance(found.get(part), dict) else {} for part in ("exercises", "lab")}


def note(part: str, key: str, value: dict) -> None:
    """Remember one thing."""
    with suppress(UserError, OSError, RuntimeError):
        everything, file = read(), progress_file()
        everything[part][key] = value
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(everything, indent=1, sort_keys=True))


def tries(name: str) -> int:
    """How often an exercise was checked before."""
    past = read()["exercises"].get(name)
    count = past.get("tries") if isinstance(past, dict) else None
    return count if isinstance(count, int) else 0


def solved(name: str) -> bool:
    past = read()["exercises"].get(name)
    return isinstance(past, dict) and past.get("right") is True


def attempt(name: str, right: bool) -> None:
    """One more try. Once right stays right."""
    note("exercises", name, {"tries": tries(name) + 1, "right": right or solved(name)})

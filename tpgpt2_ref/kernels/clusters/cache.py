"""Kernels' sources, and what was compiled from them once: files of the user's own, under their cache folder.

A file's name holds a hash of all that went into it and one of what came out, so a file that is stale, cut short or
broken is never taken for a good one. Without a folder to write to, everything works and is compiled each time.
"""
from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Callable, Mapping

from ...errors import UserError
from ...files import write_whole

SOURCE = Path(__file__).parent / "source"


def source_file(source: str | Path) -> Path:
    """`source/NAME.cu` of a name; a path is itself. Raises FileNotFoundError."""
    file = source if isinstance(source, Path) else SOURCE / f"{source}.cu"
    if not file.is_file():
        raise FileNotFoundError(f"no kernel source {file}")
    return file


def headers() -> dict[str, str]:
    """{name: text} of all that a source may include."""
    return {file.name: file.read_text() for file in sorted(SOURCE.iterdir()) if file.suffix in (".cuh", ".h")}


def as_options(defines: Mapping[str, object]) -> list[str]:
    """["-DD=768", ...]; True defines a name as 1, False and None leave it out."""
    return [f"-D{name}={int(value) if value is True else value}" for name, value in sorted(defines.items())
            if value is not None and value is not False]


def kept(name: str, ingredients: list, build: Callable[[], bytes]) -> bytes:
    """What `build` returns: from the cache, if it built from the same ingredients (JSON) before."""
    key = hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:32]
    home = folder()
    with suppress(OSError):
        for file in sorted(home.glob(f"{name}-{key}-*")) if home else ():
            content = file.read_bytes()
            if file.name == _name(name, key, content):
                return content
            file.unlink()
    content = build()
    if home:
        with suppress(UserError):
            write_whole(home / _name(name, key, content), content)
    return content


def _name(name: str, key: str, content: bytes) -> str:
    return f"{name}-{key}-{hashlib.sha256(content).hexdigest()[:32]}"


def folder() -> Path | None:
    """The cache folder, made if need be; None if there can't be one, or others could write into it: it holds code."""
    usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    home = Path(os.environ.get("XDG_CACHE_HOME") or usual).expanduser() / "tpgpt2_ref" / "kernels"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = home.stat()
    except (OSError, RuntimeError):  # no such home, a file in the way
        return None
    mine = about.st_uid == os.getuid() and not stat.S_IMODE(about.st_mode) & 0o022
    return home if mine and os.access(home, os.W_OK | os.X_OK) else None

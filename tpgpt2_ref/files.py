"""Files that others wrote, read with care; files of our own, written whole or not at all.

Reading: only regular files of a sane size (a pipe or /dev/zero would never end), and every way in which JSON can be
broken is a `UserError` that names the file. Writing: into a new file beside the old one, which then takes its name,
so that whoever looks finds the old content or the new, never a half. What is no regular file, such as /dev/null or
a pipe, is written to as it is.
"""
from __future__ import annotations

import errno
import json
import math
import os
import secrets
import stat
from pathlib import Path

from .errors import UserError

LARGEST = 1 << 28  # bytes of a text file; a large tokenizer.json has 30 MB
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "object", list: "list",
         type(None): "null"}


def read_text(path: Path | str) -> str:
    """The text of a regular UTF-8 file. Raises UserError that names the file and what is wrong with it."""
    try:
        # a pipe that nobody writes to would block the opening itself
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))) as f:
            about = os.fstat(f.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UserError(f"cannot read {path}: it is no regular file")
            if about.st_size > LARGEST:
                raise UserError(f"cannot read {path}: {about.st_size:,} bytes are too many for such a file")
            return f.read(LARGEST).decode()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e
    except ValueError as e:
        raise UserError(f"cannot read {path}: it is no UTF-8 text ({e})") from e


def read_json(path: Path | str, kind: type = dict):
    """The JSON in a file, which must be of that kind at the top: an object if nothing else is said."""
    text = read_text(path)
    try:
        document = json.loads(text)
    except RecursionError as e:
        raise UserError(f"{path} is no JSON that can be read: it nests too deep") from e
    except ValueError as e:
        raise UserError(f"{path} is cut short or no JSON: {e}") from e
    if not isinstance(document, kind):
        raise UserError(f"{path} holds {a(type(document))}, not {a(kind)}")
    return document


def field(holder: dict | list, name: str | int, kind, where: Path | str, place: str = "", **default):
    """holder[name], a field of an object or an item of a list, which must be of that kind, or of one of several.

    kind     int, float (whole or not, finite), str, bool, list, dict
    where    the file; place: where in it, such as "rows[3]."; so the message names them
    default  `default=VALUE` is returned where the field is missing; without it, that is an error
    """
    if name not in (holder if isinstance(holder, dict) else range(len(holder))):
        if default:
            return default["default"]
        raise UserError(f"{where}: {place}{name} is missing")
    value, kinds = holder[name], kind if isinstance(kind, tuple) else (kind,)
    if not any(_is(value, k) for k in kinds):
        numbers = () if float not in kinds else (int,)  # "number" says both
        wanted = " or ".join(WORDS[k] for k in kinds if k not in numbers)
        raise UserError(f"{where}: {place}{name} is {shown(value)}, which is no {wanted}")
    return value


def _is(value, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return abs(value) < 1 << 1000 if isinstance(value, int) else isinstance(value, float) and math.isfinite(value)
    return isinstance(value, kind)


def a(kind: type) -> str:
    word = WORDS[kind]
    return word if kind in (type(None), bool) else f"{'an' if word[0] in 'ao' else 'a'} {word}"


def shown(value) -> str:
    """A value in a message: as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_writable(path: Path | str, name: str = "--out") -> None:
    """Refuse a path that `write_whole` could not write to, before the work that it is for."""
    try:
        target = _target(path)
        if not target.parent.is_dir():
            raise UserError(f"{name} {path}: the folder {target.parent} does not exist")
        inside = not target.exists() or target.is_file()  # a device is written to as it is
        if target.is_dir() or inside and not os.access(target.parent, os.W_OK) or \
                target.exists() and not os.access(target, os.W_OK):
            raise UserError(f"{name} {path}: cannot write there")
    except (OSError, ValueError) as e:  # too long a name, a NUL in it, a circle of links
        raise UserError(f"{name} {path}: cannot write there: {getattr(e, 'strerror', None) or e}") from e


def write_whole(path: Path | str, content: bytes | str) -> None:
    """Write a file whole or not at all; text as UTF-8. Raises UserError where it can't be written."""
    try:
        data = content.encode() if isinstance(content, str) else content
        target = _target(path)
        if target.exists() and not target.is_file():
            _write_into(target, data)
        else:
            _replace(target, data)
    except (OSError, ValueError) as e:
        raise UserError(f"cannot write {path}: {getattr(e, 'strerror', None) or e}") from e


def _target(path: Path | str) -> Path:
    """The path itself, links followed: a link stays a link."""
    target = Path(os.path.realpath(path))
    try:
        if stat.S_ISLNK(os.lstat(target).st_mode):
            raise OSError(errno.ELOOP, "its links go round in a circle")
    except FileNotFoundError:
        pass
    return target


def _replace(target: Path, data: bytes) -> None:
    part = target.with_name(f".{secrets.token_hex(8)}.part")  # a name of its own: nobody's file is in the way
    try:
        with part.open("xb") as f:
            f.write(data)
        if target.exists():
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _write_into(target: Path, data: bytes) -> None:
    """Into a device or a pipe. A pipe without a reader is an error at once, not a wait without end."""
    with open(os.open(target, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0)), "wb") as f:
        os.set_blocking(f.fileno(), True)
        f.write(data)

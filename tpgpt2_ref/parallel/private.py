"""A folder that only this user can enter, where the ranks of one group meet: their store, their board, their sockets.

It is their temporary folder too (`torchrun.rank_env`), so that what they, torch or NCCL leave there goes with it. Its
owner holds a lock on it for as long as it lives. If the owner is killed, a janitor removes it: `removed_if_killed`, or
the process that a notebook's ranks are forked from. Where that was killed too, the next start does.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError

PREFIX = "tpgpt2-ranks-"
LONGEST = 64  # characters of the folder above, so that a socket's name in it fits into the system's 104: ours, torch's
YOUNG = 60.0  # seconds: a folder that somebody is just making has no lock yet


class PrivateFolder:
    """`path`, until `remove()`."""

    def __init__(self):
        above = tempfile.gettempdir()
        above = Path(above if len(above) <= LONGEST else "/tmp")
        try:
            remove_left_behind(above)
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above))  # mode 0700
        except OSError as e:
            raise UserError(f"no folder can be made in {above} ({e.strerror}): set TMPDIR to a writable one") from e
        self.lock = _lock(self.path)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def remove_left_behind(above: Path) -> None:
    """Remove this user's folders whose owner lives no more."""
    for path in above.glob(PREFIX + "*"):
        try:
            status = path.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < YOUNG:
                continue
            lock = _lock(path)
        except OSError:
            continue
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


@contextmanager
def removed_if_killed(path: Path) -> Iterator[Callable[[int], None]]:
    """If this process is killed inside the block, however, a shell that outlives it removes what is at that path.

    Gives a function that names a process, by its pid, which the shell then ends first.
    """
    shell = subprocess.Popen(["/bin/sh", "-c", 'kill -9 $(cat); rm -rf "$1" || { sleep 1; rm -rf "$1"; }', "sh",
                              str(path)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             bufsize=0, start_new_session=True)  # once more for what came while it removed

    def and_ends(pid: int) -> None:
        with suppress(BrokenPipeError):  # somebody has killed the shell
            shell.stdin.write(f"{pid}\n".encode())

    try:
        yield and_ends
    finally:
        shell.kill()
        shell.communicate()


def _lock(folder: Path) -> int | None:
    """An open file that holds the folder's lock, None if another process has it."""
    import fcntl  # here: Windows builds the book without it

    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file

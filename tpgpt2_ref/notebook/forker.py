"""The process that ranks are forked from (`fork_server.py`), as the notebook sees it.

    forker = Forker.take()                    the notebook's side; one for all `Ranks` of a process
    rank = forker.start(folder, arguments, log, env)       a number of its own; `pid(rank)` once it has one
    forker.signal(rank, SIGINT); forker.status(rank)
"""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path

from ..errors import RankError
from ..parallel.times import mark

REPOSITORY = Path(__file__).parents[2]
LINGER = 60.0  # seconds that it stays without a user: other ranks often follow, and importing torch takes seconds
GONE = 127  # what `status` says of ranks whose forker was killed: they went with it


class Forker:
    """The notebook's side. Safe to use from any thread."""

    _shared: list[Forker] = []  # the one that runs, if one does: all `Ranks` of a process start from it
    _lock = threading.RLock()  # collecting garbage may give one back anywhere
    forks = sys.platform == "linux"  # elsewhere a process that has torch and its threads can't be forked safely

    @classmethod
    def take(cls, users: int = 1) -> Forker:
        """The one that runs already, otherwise a new one. It ends a while after all who took it gave it back.

        users  0: it is only to be there, with torch imported, when the first `Ranks` are asked for
        """
        with cls._lock:
            if cls._shared and not cls._shared[0].alive:
                cls._shared.clear()
            if not cls._shared:
                cls._shared.append(cls())
            cls._shared[0].users += users
            return cls._shared[0]

    def give_back(self) -> None:
        with self._lock:
            self.users -= 1
            self.returned += 1
            if self.users:
                return
            try:
                if self.forks and self.alive and self in self._shared:
                    later = threading.Timer(LINGER, self._end_unused, [self.returned])
                    later.daemon = True
                    later.start()
                    return
            except RuntimeError:
                pass  # this process ends, and starts no more threads
            self._end()

    def _end_unused(self, returned: int) -> None:
        with self._lock:
            if not self.users and self.returned == returned:  # nobody has had it since
                self._end()

    def _end(self) -> None:
        if self in self._shared:
            self._shared.remove(self)
        self._finish()

    def __init__(self):
        mark("fork server started")
        self.socket, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from tpgpt2_ref.notebook.fork_server import main; "
             f"main({theirs.fileno()}, forks={self.forks})"],
            pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        self._state, self.users, self.returned = _Heard(), 0, 0
        self._finish = weakref.finalize(self, _finish, self.socket, self.process)
        threading.Thread(target=_listen, args=(self.socket, self._state), daemon=True, name="ranks").start()

    @property
    def alive(self) -> bool:
        return not self._state.over

    def start(self, folder: Path, arguments: list[str], log: str, env: dict[str, str]) -> int:
        """Ask for a new rank, `rank_kernel.main(*arguments)`; its number here. Its folder goes with the notebook."""
        with self._state.changed:
            self._state.asked += 1
            rank = self._state.asked
        self._say(start=rank, folder=str(folder), arguments=arguments, log=log, env=env, cwd=os.getcwd())
        return rank

    def pid(self, rank: int) -> int:
        with self._state.changed:
            self._state.changed.wait_for(lambda: rank in self._state.pids or self._state.over, 60.0)
            if rank not in self._state.pids:
                raise RankError("the process that starts ranks has ended, or does not answer: is there memory left?")
            return self._state.pids[rank]

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to a rank, SIGKILL to all that it has started too; nothing if it has ended."""
        self._say(signal=[rank, int(number)])

    def forget(self, folder: Path) -> None:
        self._say(forget=str(folder))

    def status(self, rank: int) -> int | None:
        """How a rank has ended, as `Popen.returncode` has it; None while it runs."""
        with self._state.changed:
            return self._state.statuses.get(rank, GONE if self._state.over else None)

    def wait(self, rank: int, seconds: float) -> None:
        with self._state.changed:
            self._state.changed.wait_for(lambda: rank in self._state.statuses or self._state.over, seconds)

    def _say(self, **what) -> None:
        line = (json.dumps(what) + "\n").encode()
        try:
            with self._state.sending:
                self.socket.sendall(line)
        except OSError:
            pass  # it has ended: `over` tells


class _Heard:
    """What the forker has said."""

    def __init__(self):
        self.changed, self.sending = threading.Condition(), threading.Lock()
        self.asked, self.pids, self.statuses, self.over = 0, {}, {}, False


def _listen(control: socket.socket, state: _Heard) -> None:
    try:
        for line in control.makefile():
            said = json.loads(line)
            with state.changed:
                if "pid" in said:
                    state.pids[said["started"]] = said["pid"]
                else:
                    state.statuses[said["ended"]] = said["status"]
                state.changed.notify_all()
    except (OSError, ValueError):
        pass
    with state.changed:
        state.over = True
        state.changed.notify_all()


def _finish(control: socket.socket, process: subprocess.Popen) -> None:
    try:
        control.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    control.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

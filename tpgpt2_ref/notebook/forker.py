"""The process that ranks are forked from: it imports torch once, so that fresh ranks are there in a moment.

    forker = Forker.take()                    the notebook's side; one for all `Ranks` of a process
    pid = forker.start(folder, connection, log, env)
    forker.signal(pid, SIGINT); forker.status(pid)

`main` is the process itself, which talks JSON lines over a socket.

It is also the janitor. It is the ranks' parent, so it knows how each one ended and never signals a stranger's pid; when
the notebook is gone, however it ended, it kills them and removes their folders. Where forking is not safe (macOS) it
starts each rank as a new process instead.
"""
from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from pathlib import Path

from ..errors import RankError

FORKS = sys.platform == "linux"
REPOSITORY = Path(__file__).parents[2]
GONE = 127  # what `status` says of ranks whose forker was killed: they went with it


class Forker:
    """The notebook's side. Safe to use from any thread."""

    _shared: list[Forker] = []  # the one that runs, if one does: all `Ranks` of a process start from it
    _lock = threading.Lock()

    @classmethod
    def take(cls) -> Forker:
        """The one that runs already, otherwise a new one. It ends when all who took it have given it back."""
        with cls._lock:
            if cls._shared and not cls._shared[0].alive:
                cls._shared.clear()
            if not cls._shared:
                cls._shared.append(cls())
            cls._shared[0].users += 1
            return cls._shared[0]

    def give_back(self) -> None:
        with self._lock:
            self.users -= 1
            if not self.users:
                if self in self._shared:
                    self._shared.remove(self)
                self._finish()

    def __init__(self):
        self.socket, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main({theirs.fileno()})"], pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        self._state, self.users = _Heard(), 0
        self._finish = weakref.finalize(self, _finish, self.socket, self.process)
        threading.Thread(target=_listen, args=(self.socket, self._state), daemon=True, name="ranks").start()

    @property
    def alive(self) -> bool:
        return not self._state.over

    def start(self, folder: Path, connection: str, log: str, env: dict[str, str]) -> int:
        """A new rank's pid. The folder is removed once the notebook is gone."""
        with self._state.changed:
            self._state.asked += 1
            key = self._state.asked
        self._say(start=key, folder=str(folder), connection=connection, log=log, env=env, cwd=os.getcwd())
        with self._state.changed:
            if not self._state.changed.wait_for(lambda: key in self._state.pids or self._state.over, 60.0):
                raise RankError("the process that starts ranks does not answer")
            if self._state.over:
                raise RankError("the process that starts ranks has ended: is there memory left?")
            return self._state.pids[key]

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a rank, SIGKILL to all that it has started too; nothing if it has ended."""
        self._say(signal=[pid, int(number)])

    def forget(self, folder: Path) -> None:
        self._say(forget=str(folder))

    def status(self, pid: int) -> int | None:
        """How a rank has ended, as `Popen.returncode` has it; None while it runs."""
        with self._state.changed:
            return self._state.statuses.get(pid, GONE if self._state.over else None)

    def wait(self, pid: int, seconds: float) -> None:
        with self._state.changed:
            self._state.changed.wait_for(lambda: pid in self._state.statuses or self._state.over, seconds)

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


# The process itself


def main(fd: int) -> None:
    """Serve one notebook until it is gone."""
    notebook, control = os.getppid(), socket.socket(fileno=fd)
    wake, waker = socket.socketpair()
    wake.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if FORKS:
        _import_what_ranks_need()
    children, folders, heard = set(), set(), b""
    try:
        while os.getppid() == notebook:
            ready, _, _ = select.select([control, wake], [], [], 0.5)
            if wake in ready:
                wake.recv(4096)
            for pid, status in _reap(children):
                control.sendall((json.dumps({"ended": pid, "status": status}) + "\n").encode())
            if control not in ready:
                continue
            if not (data := control.recv(65536)):
                return
            *lines, heard = (heard + data).split(b"\n")
            for line in lines:
                if pid := _obey(json.loads(line), children, folders, control, wake, waker):
                    children.add(pid)
    except OSError:
        pass  # the notebook closed its end
    finally:
        _clean_up(children, folders)


def _import_what_ranks_need() -> None:
    """And show one traceback: the first costs a second, the later ones nothing."""
    import ipykernel.ipkernel  # noqa: F401
    import ipykernel.kernelapp  # noqa: F401
    from IPython.core.ultratb import AutoFormattedTB

    from ..parallel import collectives, world  # noqa: F401
    from . import rank_kernel  # noqa: F401

    try:
        raise ValueError
    except ValueError:
        AutoFormattedTB(mode="Context", theme_name="linux").text(*sys.exc_info())


def _obey(said: dict, children: set, folders: set, *sockets) -> int | None:
    """Carry out one line; the pid of a rank that it started."""
    if "signal" in said:
        pid, number = said["signal"]
        if pid in children:
            (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)
    elif "forget" in said:
        folders.discard(said["forget"])
    else:
        folders.add(said["folder"])
        pid = _fork(said, sockets) if FORKS else _spawn(said)
        sockets[0].sendall((json.dumps({"started": said["start"], "pid": pid}) + "\n").encode())
        return pid
    return None


def _fork(said: dict, sockets) -> int:
    forker = os.getpid()
    if pid := os.fork():
        try:
            os.setpgid(pid, pid)  # as the child does: whoever comes first
        except OSError:
            pass
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for s in sockets:
            s.close()
        os.setpgid(0, 0)
        getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != forker:
            os._exit(1)
        log = os.open(said["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(said["env"])
        os.chdir(said["cwd"])
        from . import rank_kernel

        rank_kernel.main(said["connection"])
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _spawn(said: dict) -> int:
    with open(said["log"], "w") as log:
        return subprocess.Popen([sys.executable, "-m", "tpgpt2_ref.notebook.rank_kernel", said["connection"]],
                                env=said["env"], cwd=said["cwd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True).pid


def _reap(children: set) -> list[tuple[int, int]]:
    """(pid, status) of the ranks that have ended."""
    ended = []
    for pid in list(children):
        got, status = os.waitpid(pid, os.WNOHANG)
        if got:
            children.discard(pid)
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended


def _clean_up(children: set, folders: set) -> None:
    for pid in children:
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass
    deadline = time.monotonic() + 5
    while children and time.monotonic() < deadline:
        _reap(children)
        time.sleep(0.01)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


"""The process that ranks are forked from: it imports torch once, so that fresh ranks are there in a moment.

It talks JSON lines over a socket with `forker.py`. It is also the janitor: it is the ranks' parent, so it knows how
each one ended and never signals a stranger's pid, and when the notebook is gone, however it ended, it kills them and
removes their folders. Where forking is not safe (macOS) it starts each rank as a new process instead.
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
import tempfile
import time
import traceback
from contextlib import contextmanager

from ..parallel.times import mark


def main(fd: int, forks: bool) -> None:
    """Serve one notebook until it is gone.

    forks  whether ranks are forked from here; otherwise each is a process of its own, which imports torch itself
    """
    notebook, control = os.getppid(), socket.socket(fileno=fd)
    wake, waker = socket.socketpair()
    wake.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children, folders, heard = {}, set(), b""  # children: {number: pid}
    mark("fork server: its Python is up")
    try:
        with _for_as_long_as(notebook, control):
            if forks:
                _import_what_ranks_need()
        mark("fork server: imported")
        while os.getppid() == notebook:
            ready, _, _ = select.select([control, wake], [], [], 0.5)
            if wake in ready:
                wake.recv(4096)
            for rank, status in _reap(children):
                control.sendall((json.dumps({"ended": rank, "status": status}) + "\n").encode())
            if control not in ready:
                continue
            if not (data := control.recv(65536)):
                break
            *lines, heard = (heard + data).split(b"\n")
            for line in lines:
                _obey(json.loads(line), forks, children, folders, control, wake, waker)
    except OSError:
        pass  # the notebook closed its end
    finally:
        _clean_up(children, folders | _unread(control, heard))
    os._exit(0)  # torch's own end takes half a second, and closing waits for it


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


@contextmanager
def _for_as_long_as(notebook: int, control: socket.socket):
    """Imports take seconds: they end when the notebook does, or wants no ranks any more."""
    def look(*_):
        try:
            if os.getppid() != notebook or not control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                sys.exit()
        except BlockingIOError:
            pass  # nothing said yet

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _obey(said: dict, forks: bool, children: dict[int, int], folders: set, *sockets) -> None:
    """Carry out one line."""
    if "signal" in said:
        rank, number = said["signal"]
        if rank in children:
            (os.killpg if number == signal.SIGKILL else os.kill)(children[rank], number)
    elif "forget" in said:
        folders.discard(said["forget"])
    else:
        folders.add(said["folder"])
        pid = children[said["start"]] = _fork(said, sockets) if forks else _spawn(said)
        sockets[0].sendall((json.dumps({"started": said["start"], "pid": pid}) + "\n").encode())


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
        tempfile.tempdir = None  # an import may have looked for it here; the rank has one of its own
        os.chdir(said["cwd"])
        from . import rank_kernel

        rank_kernel.main(*said["arguments"])
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
        return subprocess.Popen([sys.executable, "-m", "tpgpt2_ref.notebook.rank_kernel", *said["arguments"]],
                                env=said["env"], cwd=said["cwd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True).pid


def _reap(children: dict[int, int]) -> list[tuple[int, int]]:
    """(number, status) of the ranks that have ended."""
    ended = []
    for rank, pid in list(children.items()):
        got, status = os.waitpid(pid, os.WNOHANG)
        if got:
            del children[rank]
            ended.append((rank, os.waitstatus_to_exitcode(status)))
    return ended


def _unread(control: socket.socket, heard: bytes) -> set[str]:
    """Folders of ranks that the notebook still asked for before it was gone."""
    try:
        control.setblocking(False)
        while data := control.recv(65536):
            heard += data
    except OSError:
        pass
    return {said["folder"] for line in heard.split(b"\n")[:-1] if "folder" in (said := json.loads(line))}


def _clean_up(children: dict[int, int], folders: set) -> None:
    for pid in children.values():
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

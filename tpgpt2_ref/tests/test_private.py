"""What ranks put into their temporary folder does not outlive them, whoever is killed."""
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tpgpt2_ref.parallel.private import PREFIX, PrivateFolder

from .conftest import ROOT

# What torch's symmetric memory does in a rendezvous: a socket named by the process, in the folder that C is told
SOCKET = """
import ctypes, os, socket
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
folder = next(filter(None, map(getenv, (b"TMPDIR", b"TMP", b"TEMP", b"TEMPDIR"))), b"/tmp").decode()
assert len(f"{folder}/symm_mem-4194304") < 108  # what the system allows, with the longest pid
here = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
here.bind(f"{folder}/symm_mem-{os.getpid()}")
"""
FILES = "import pathlib, tempfile, time\npathlib.Path(tempfile.mkdtemp(), 'more').touch()\n"


@pytest.fixture
def place(monkeypatch):
    """A temporary folder of the test's own."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


def gone(left) -> bool:
    deadline = time.monotonic() + 5
    while left() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not left()


@pytest.mark.parametrize("killed", ["a rank", "all ranks", "the launcher", "all at once"])
def test_nothing_outlives_ranks_that_are_killed(place, killed):
    if killed == "all at once":  # and no socket's name fits in below
        place /= "t" * 90
        place.mkdir()
    code = (f"from tpgpt2_ref.parallel import launch\nlaunch.GRACE = 0.1\nlaunch.launch(['-c', {SOCKET + FILES!r} + "
            "'print(folder, flush=True); time.sleep(60)'], 2, module=None)")
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TMPDIR": str(place)},
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    folder = Path(owner.stdout.readline().strip())
    while len(sockets := list(folder.glob("symm_mem-*"))) < 2:
        time.sleep(0.01)
    ranks = [int(s.name.partition("-")[2]) for s in sockets]
    assert folder.name.startswith(PREFIX) and len(list(folder.iterdir())) >= 3
    for pid in {"a rank": ranks[1:], "all ranks": ranks, "the launcher": [owner.pid],
                "all at once": [*ranks, owner.pid]}[killed]:
        os.kill(pid, signal.SIGKILL)
    owner.wait(20)
    owner.stdout.close()
    assert gone(folder.exists) and not list(place.iterdir())


def test_ranks_of_torchrun_lose_torchs_socket(place, monkeypatch):
    """They share the temporary folder with everybody: only what bears their own name goes."""
    import torch.distributed._symmetric_memory as symm_mem

    from tpgpt2_ref.parallel.all_reduce.symmetric import rendezvous

    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RANKS_MEET_IN", raising=False)
    (place / "symm_mem-1").touch()
    bound = multiprocessing.get_context("fork").Event()

    def dies(*_):
        exec(SOCKET, {})
        bound.set()
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(symm_mem, "rendezvous", dies)
    rank = multiprocessing.get_context("fork").Process(target=rendezvous, args=(None, SimpleNamespace(group=None)))
    rank.start()
    rank.join(20)
    assert rank.exitcode == -signal.SIGKILL and bound.is_set()
    assert gone(lambda: os.listdir(place) != ["symm_mem-1"])


def test_the_next_start_removes_what_nobody_could(place):
    """A folder without a lock, which is not just being made."""
    owner = PrivateFolder()
    left, young, stranger = (place / name for name in (f"{PREFIX}left", f"{PREFIX}young", "symm_mem-1"))
    for folder in (left, young, stranger):
        folder.mkdir()
    for folder in (owner.path, left, stranger):
        os.utime(folder, (1, 1))
    PrivateFolder().remove()
    assert set(place.iterdir()) == {owner.path, young, stranger}
    owner.remove()
    assert set(place.iterdir()) == {young, stranger}

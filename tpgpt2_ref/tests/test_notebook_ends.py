"""How live ranks start and end: forked or not, with nothing left behind, and what their owner can mend."""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tpgpt2_ref.errors import RankError, UserError
from tpgpt2_ref.notebook import Ranks
from tpgpt2_ref.notebook.forker import Forker

from .conftest import ROOT
from .test_notebook import SUM
from .test_notebook_faults import is_running, pids
from .test_private import FILES, SOCKET


def test_where_forking_is_not_safe_each_rank_is_started_anew(monkeypatch):
    """As on macOS."""
    monkeypatch.setattr(Forker, "forks", False)
    monkeypatch.setattr(Forker, "_shared", [])
    with Ranks(2, device="cpu") as ranks:
        with pytest.raises(RankError, match="rank 1 ended with status 1.*Fresh"):
            ranks.run("import os, time\nos._exit(1) if world.rank else time.sleep(20)")
        ranks.run(SUM)
        assert [y.tolist() for y in ranks.get("y")] == [[2, 2], [2, 2]]
        gone = [*pids(ranks), ranks._forker.process.pid]
    assert not any(map(is_running, gone))


def test_the_process_that_forks_ranks_outlives_them_a_while(monkeypatch):
    """Ranks that follow others need not import torch again; if none follow, nothing stays."""
    monkeypatch.setattr(Forker, "_shared", [])
    monkeypatch.setattr("tpgpt2_ref.notebook.forker.LINGER", 0.5)
    first = Forker.take()
    first.give_back()
    again = Forker.take()
    time.sleep(0.7)
    assert again is first and is_running(first.process.pid)
    again.give_back()
    time.sleep(0.2)
    assert is_running(first.process.pid)
    deadline = time.monotonic() + 5
    while is_running(first.process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(first.process.pid) and not Forker._shared


@pytest.mark.parametrize("killed", [True, False])
def test_nothing_is_left_when_the_owner_ends(killed):
    """Killed while one rank computes and the other is blocked in a collective; or at its own end. Neither a process nor
    what the ranks, or torch, had in the temporary folder."""
    blocked = "from tpgpt2_ref.parallel.collectives import barrier\nbarrier(world) if world.rank else time.sleep(60)"
    code = ("from tpgpt2_ref.notebook import Ranks\nr = Ranks(2, device='cpu')\n"
            "print(r._crew.folder.path, *(p.pid for p in r._crew.processes), r._forker.process.pid, flush=True)\n"
            f"r.run({SOCKET + FILES!r})\nprint(flush=True)\n" + killed * f"r.run({blocked!r})")
    with tempfile.TemporaryDirectory() as place:
        owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "TMPDIR": place})
        assert owner.stdout.readline().startswith("2 ranks")
        folder, *ranks = owner.stdout.readline().split()
        ranks = [int(pid) for pid in ranks]
        owner.stdout.readline()
        if killed:
            time.sleep(0.5)
            assert all(map(is_running, ranks)) and os.listdir(place) == [Path(folder).name]
            assert len(list(Path(folder).glob("symm_mem-*"))) == len(list(Path(folder).glob("tmp*"))) == 2
            owner.kill()
        owner.wait(20)
        owner.stdout.close()
        deadline = time.monotonic() + 5
        while (any(map(is_running, ranks)) or os.listdir(place)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(ranks) == 3 and not any(map(is_running, ranks)) and not os.listdir(place)


def test_what_a_user_can_mend(monkeypatch):
    monkeypatch.setattr("tpgpt2_ref.notebook.ranks.gpu_count", lambda: 1)
    with pytest.raises(UserError, match="needs 2 GPUs, this machine has 1: .*share_gpu"):
        Ranks(2, device="cuda", share_gpu=False)
    with pytest.raises(UserError, match="at least one"):
        Ranks(0)
    ranks = Ranks(1, device="cpu", share_gpu=False)
    assert "this machine has 1 GPU, NCCL wants one a rank" in ranks.describe()
    ranks.close()
    ranks.close()
    with pytest.raises(UserError, match="closed"):
        ranks.run("1")


def test_no_port_but_on_loopback(ranks):
    """Nothing that a rank listens on can be reached from another host, or another network namespace."""
    inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for pid in pids(ranks) for fd in os.listdir(f"/proc/{pid}/fd")
              if os.path.islink(f"/proc/{pid}/fd/{fd}")}
    listens = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in inodes:
                listens.append(local.partition(":")[0])
    assert listens and set(listens) <= {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1, ::1
    assert ranks._crew.folder.path.stat().st_mode & 0o777 == 0o700

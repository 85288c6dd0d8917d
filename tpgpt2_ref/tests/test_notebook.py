"""Live ranks under a notebook: values, rows, and every way in which a cell can go wrong. Real gloo ranks."""
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tpgpt2_ref.errors import RankError, UserError
from tpgpt2_ref.notebook import LivePlot, Ranks
from tpgpt2_ref.notebook.show import CellError

REPOSITORY = Path(__file__).parents[2]
SUM = "from tpgpt2_ref.parallel.collectives import all_reduce as f\ny = f(torch.ones(2, device=world.device), world)"
ROWS = "import time\nfor i in range(5):\n    emit(i=torch.tensor(i), sent=time.time()); time.sleep(0.1)"
UNMATCHED = """
import torch.distributed as dist
if world.rank == 0:
    raise ValueError("before the sum")
dist.all_reduce(torch.ones(1), async_op=True)
"""
DEADLOCK = """if world.rank == 0:
    raise ValueError("boom")
from tpgpt2_ref.parallel.collectives import barrier
barrier(world)
"""


@pytest.fixture(scope="module")
def ranks():
    with Ranks(2, device="cpu") as ranks:
        yield ranks


def pids(ranks):
    return [p.process.pid for p in ranks._processes]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_they_form_a_group_and_say_which(ranks):
    assert ranks.describe().startswith("2 ranks, gloo on CPU")
    assert ranks.get("(world.rank, world.size, world.backend)") == [(0, 2, "gloo"), (1, 2, "gloo")]
    ranks.run(SUM)
    assert [y.tolist() for y in ranks.get("y")] == [[2, 2], [2, 2]]


def test_output_is_shown_by_rank(ranks, capsys):
    ranks.run("print('from', world.rank)\nprint('no newline', end='')\nworld.rank + 10")
    assert capsys.readouterr().out.splitlines() == [
        "rank 0 │ from 0", "rank 0 │ no newline", "rank 0 │ 10",
        "rank 1 │ from 1", "rank 1 │ no newline", "rank 1 │ 11"]


def test_a_view_travels_without_its_storage(ranks):
    ranks.run("big = torch.arange(1_000_000.)")
    view = ranks.get("big[5:7]")[1]
    assert view.tolist() == [5, 6] and view.untyped_storage().nbytes() == 8


def test_rows_arrive_while_the_cell_runs(ranks):
    late = [time.time() - row["sent"] for row in ranks.stream(ROWS)]
    assert len(late) == 10 and sorted(late)[4] < 0.08  # the median row, before the next one was sent


def test_the_ranks_refuse_a_second_request_while_they_stream(ranks):
    with pytest.raises(UserError, match="busy"):
        for _ in ranks.stream("emit(a=1)"):
            ranks.get("1")
    assert ranks.get("1") == [1, 1]


def test_an_error_on_all_ranks_is_shown_once_and_keeps_their_state(ranks):
    ranks.run("kept = 1")
    with pytest.raises(CellError, match="^ranks 0, 1: NameError: name 'nope' is not defined$") as e:
        ranks.run("nope")
    assert "nope" in "\n".join(e.value._render_traceback_())
    assert ranks.get("kept") == [1, 1]


def test_a_rank_that_raises_alone_keeps_the_others(ranks):
    ranks.run("kept = 2")
    with pytest.raises(CellError, match="^rank 1: ZeroDivisionError"):
        ranks.run("1 / (1 - world.rank)")
    assert ranks.get("kept") == [2, 2]


def test_a_rank_that_raises_while_the_other_waits(ranks):
    old, begin = pids(ranks), time.monotonic()
    with pytest.raises(CellError, match="rank 0: ValueError: boom. rank 1 was in barrier, at line 4 .*fresh"):
        ranks.run(DEADLOCK)
    assert time.monotonic() - begin < 8
    assert ranks.get("'y' in globals()") == [False, False]
    assert not any(map(is_running, old))


def test_an_unmatched_collective_left_behind_is_noticed(ranks, monkeypatch):
    monkeypatch.setattr("tpgpt2_ref.notebook.ranks.IN_STEP", 2.0)
    with pytest.raises(CellError, match="fresh"):
        ranks.run(UNMATCHED)
    assert ranks.get("world.size") == [2, 2]


def test_deadline_and_interrupt(ranks):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    with pytest.raises(RankError, match="no answer after 0.5 s. rank 0 was at line 1 of the cell"):
        ranks.run("while True: pass", timeout=0.5)
    old = pids(ranks)
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        ranks.run("while True: pass")
    assert ranks.get("world.rank") == [0, 1] and pids(ranks) == old
    for _ in ranks.stream("import time\nwhile True:\n    emit(a=1); time.sleep(0.01)"):
        break  # a reader who has seen enough
    assert ranks.get("world.rank") == [0, 1]


def test_a_rank_that_dies(ranks):
    with pytest.raises(RankError, match="rank 1 was killed by SIGKILL.*fresh"):
        ranks.run("import os, signal\nif world.rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
                  "import time; time.sleep(60)")
    assert ranks.get("world.rank") == [0, 1]


@pytest.mark.parametrize("killed", [True, False])
def test_nothing_is_left_when_the_owner_ends(killed):
    """Killed while one rank computes and the other is blocked in a collective; or at its own end."""
    blocked = "import time\nfrom tpgpt2_ref.parallel.collectives import barrier\n" \
              "barrier(world) if world.rank else time.sleep(60)"
    code = ("from tpgpt2_ref.notebook import Ranks\nr = Ranks(2, device='cpu')\n"
            "print(*(p.process.pid for p in r._processes), flush=True)\n" + killed * f"r.run({blocked!r})")
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline().startswith("2 ranks")
    ranks = [int(pid) for pid in owner.stdout.readline().split()]
    if killed:
        time.sleep(0.5)
        assert all(map(is_running, ranks))
        owner.kill()
    owner.wait(20)
    deadline = time.monotonic() + 5
    while any(map(is_running, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(ranks) == 2 and not any(map(is_running, ranks))


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


def notebook(*cells):
    """The cells' outputs, run in a real notebook kernel."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(book, timeout=60, kernel_name="python3", allow_errors=True,
                   resources={"metadata": {"path": str(REPOSITORY)}}).execute()
    return [cell.outputs for cell in book.cells]


def test_in_a_notebook():
    _, magic, wrong, after, plot = notebook(
        "from tpgpt2_ref.notebook import LivePlot, Ranks\nranks = Ranks(2, device='cpu')",
        "%%ranks\nprint('rank', world.rank)",
        "%%ranks\n" + DEADLOCK,
        "ranks.get('world.rank')",
        "live = LivePlot(lambda ax, rows: ax.plot([r['i'] for r in rows]))\n"
        "for row in ranks.stream('for i in range(3): emit(i=i)'):\n    live.add(row)")
    assert magic[0].text == "rank 0 │ rank 0\nrank 1 │ rank 1\n"
    shown = "\n".join(wrong[-1].traceback)
    assert wrong[-1].output_type == "error" and "ValueError" in shown and "rank 1 was in barrier" in shown
    assert "ranks.py" not in shown
    assert after[0].data["text/plain"] == "[0, 1]"
    assert [o.output_type for o in plot] == ["display_data"] and "image/png" in plot[0].data


def test_live_plot_draws_every_row_by_the_end():
    drawn = []
    live = LivePlot(lambda axes, rows: drawn.append((len(axes), len(rows))), ncols=2)
    for i in range(50):
        live.add({"i": i})
    live.finish()
    assert drawn[-1] == (2, 50) and len(drawn) < 50


@pytest.mark.gpu
def test_two_ranks_share_one_gpu_with_nccl():
    with Ranks(2, device="cuda", share_gpu=True) as ranks:
        assert "NCCL" in ranks.describe()
        ranks.run(SUM)
        assert [y.tolist() for y in ranks.get("y")] == [[2, 2], [2, 2]]
        begin = time.monotonic()
        with pytest.raises(CellError, match="rank 0: ValueError: boom. rank 1 was in .*fresh"):
            ranks.run(DEADLOCK)
        assert time.monotonic() - begin < 10
        assert ranks.get("world.backend") == ["nccl", "nccl"]

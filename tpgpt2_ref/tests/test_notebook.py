"""Live ranks under a notebook: values, rows, and every way in which a cell can go wrong. Real gloo ranks."""
import os
import shutil
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
    return [p.pid for p in ranks._crew.processes]


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


IMPORT = "import time, torch.distributed as dist\n"
WRONG = {
    # what both ranks run: what the error says
    "if world.rank: raise ValueError('boom')\nbarrier(world)":
        "^rank 1: ValueError: boom. rank 0 waits in barrier #1, line 4; rank 1 ended its cell without any$",
    "all_reduce(torch.ones(4), world)\nif world.rank: all_reduce(torch.ones(4), world, 'h.0')":
        "^rank 1 waits in all_reduce #2, float32 \\(4,\\), of h.0, line 4; rank 0 ended its cell after #1$",
    "dist.all_reduce(torch.ones(4 + world.rank))":
        "^#1 is all_reduce of \\(4,\\) on rank 0 \\(line 3\\) and of \\(5,\\) on rank 1 \\(line 3\\)$",
    "dist.all_reduce(torch.ones((2, 3) if world.rank else (3, 2)))":
        "of \\(3, 2\\) on rank 0 .* and of \\(2, 3\\) on rank 1",
    "all_reduce(torch.ones(3).to((torch.float32, torch.int32)[world.rank]), world)":
        "^#1 is all_reduce of float32 on rank 0 .* and of int32 on rank 1",
    "dist.barrier()\ndist.barrier() if world.rank else dist.all_reduce(torch.ones(1))":
        "^#2 is all_reduce of float32 \\(1,\\) on rank 0 \\(line 4\\) and barrier on rank 1 \\(line 4\\)$",
    "dist.broadcast(torch.ones(1), world.rank)": "^#1 is broadcast of rank 0 on rank 0 .* and of rank 1 on rank 1",
    "dist.all_reduce(torch.ones(1), (dist.ReduceOp.SUM, dist.ReduceOp.MAX)[world.rank])": "of max on rank 1",
}


@pytest.mark.parametrize("code", WRONG)
def test_ranks_that_disagree_are_told_how_and_go_on(ranks, code):
    """No data has moved, so the same ranks take the next cell."""
    old, begin = pids(ranks), time.monotonic()
    with pytest.raises(CellError, match=WRONG[code]):
        ranks.run(IMPORT + "from tpgpt2_ref.parallel.collectives import all_reduce, barrier\n" + code)
    assert time.monotonic() - begin < 3
    ranks.run(SUM)
    assert [y.tolist() for y in ranks.get("y")] == [[2, 2], [2, 2]] and pids(ranks) == old


def test_an_unmatched_collective_left_behind_is_noticed(ranks):
    old = pids(ranks)
    with pytest.raises(CellError, match="rank 0: ValueError: before the sum"):
        ranks.run(UNMATCHED)
    with pytest.raises(RankError, match="^rank 1 called all_reduce #1, .* line 2; rank 0 ended its cell .*Fr"):
        ranks.run(IMPORT + "work = dist.all_reduce(torch.ones(1), async_op=True) if world.rank else time.sleep(0.5)")
    assert ranks.get("world.size") == [2, 2] and not any(map(is_running, old))


def test_asynchronous_collectives_that_match(ranks):
    ranks.run(IMPORT + "x = [torch.full((1,), float(i)) for i in range(400)]\n"
              "if world.rank: import time; time.sleep(0.3)\n"
              "for work in [dist.all_reduce(t, async_op=True) for t in x]: work.wait()")
    assert ranks.get("sum(x).item()") == [2 * sum(range(400))] * 2


def test_slow_is_not_dead(ranks):
    begin = time.monotonic()
    ranks.run(IMPORT + "import time\nif world.rank: time.sleep(4)\ndist.barrier()")
    assert time.monotonic() - begin > 4


def test_one_rank_alone(ranks, capsys):
    ranks.run("mine = world.rank\nprint('alone', mine)", rank=1)
    assert capsys.readouterr().out == "rank 1 │ alone 1\n"
    assert ranks.get("'mine' in globals()") == [False, True]
    with pytest.raises(CellError, match="rank 1 waits in barrier #1, line 2; rank 0 does not run this cell"):
        ranks.run(IMPORT + "dist.barrier()", rank=1)
    with pytest.raises(UserError, match="rank 2: these ranks are 0 to 1"):
        ranks.run("1", rank=2)


def test_where_they_are(ranks):
    seen = []
    look = threading.Timer(1.0, lambda: seen.append(repr(ranks.where())))
    look.start()
    ranks.run(IMPORT + "import time\nif world.rank:\n    time.sleep(2)\ndist.all_reduce(torch.ones(2))")
    look.join()
    assert seen == ["rank 0 waits in all_reduce #1, float32 (2,), line 5\nrank 1 is at line 4"]
    assert ranks.where()[1] == "idle; its last cell ended after #1"


def test_what_a_cell_may_do_to_its_names_and_itself(ranks):
    ranks.run("world.rank, world.size = 7, 9\nworld = _rank = emit = torch = None")
    for end in ("exit()", "quit()"):
        with pytest.raises(CellError, match="does not end a rank"):
            ranks.run(end)
    ranks.run("import threading\n" + IMPORT + "def late():\n    time.sleep(0.3); dist.all_reduce(torch.ones(3))\n"
              "threading.excepthook = lambda e: errors.append(str(e.exc_value))\nerrors = []\n"
              "if world.rank: threading.Thread(target=late).start()")
    ranks.run("import time; time.sleep(0.6)\n" + SUM)
    assert [y.tolist() for y in ranks.get("y")] == [[2, 2], [2, 2]] and ranks.get("world.rank") == [0, 1]
    assert "whose cell has ended" in ranks.get("errors")[1][0]
    with pytest.raises(RankError, match="^rank 1 left its group. Fresh"):
        ranks.run(IMPORT + "if world.rank: dist.destroy_process_group()")
    assert ranks.get("world.rank") == [0, 1]


def test_rows_of_any_number_and_any_speed(ranks):
    sent = ranks.stream("for x in (float('nan'), torch.tensor(float('inf')), 10**30, True): emit(x=x)")
    got = [row for row in sent if row["rank"] == 0]  # the ranks' rows arrive as they come
    assert all(isinstance(row["x"], float) for row in got[:2]) and got[2]["x"] == 10**30 and got[3]["x"] is True
    count = 0
    for _ in ranks.stream("for i in range(3000): emit(i=i)", timeout=20):
        count += 1
        time.sleep(0.0003)
    assert count == 6000


def test_a_progress_bar_is_one_line(ranks, capsys):
    ranks.run("for i in range(5): print(f'\\r{i} of 4', end='')\nprint()\nprint('done\\r\\n', end='')")
    assert capsys.readouterr().out.splitlines()[:2] == ["rank 0 │ 4 of 4", "rank 0 │ done"]


def test_nothing_around_them_breaks_the_next_cell(ranks):
    shutil.rmtree(ranks._crew.folder.path)
    with pytest.raises(RankError, match="folder .* was removed.*Fresh"):
        ranks.run(SUM)
    os.kill(ranks._crew.processes[1].pid, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(RankError, match="rank 1 was killed by SIGKILL since the last cell. Fresh"):
        ranks.run(SUM)
    results = []
    def call():
        try:
            results.append(ranks.get("world.size"))
        except UserError:
            results.append("busy")
    threads = [threading.Thread(target=call) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [2, 2] in results and all(r in ([2, 2], "busy") for r in results)


def test_any_number_of_interrupts(ranks):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    swallow = "import time\nend = time.time() + 30\nwhile time.time() < end:\n    try: time.sleep(1)\n" \
              "    except KeyboardInterrupt: pass"
    for code, pauses in ((IMPORT + "dist.barrier() if world.rank else __import__('time').sleep(9)", [0.3, 0.02, 0.02]),
                         (swallow, [0.3] + [0.05] * 10)):
        def press(pauses=pauses):
            for pause in pauses:
                time.sleep(pause)
                os.kill(os.getpid(), signal.SIGINT)
        presses = threading.Thread(target=press)
        presses.start()
        with pytest.raises(KeyboardInterrupt):
            ranks.run(code)
        presses.join()
        assert ranks.get("world.rank") == [0, 1]


def test_closed_while_they_work(ranks):
    """From inside a stream and from another thread; made in a thread that ends. One import of torch serves them all."""
    other = []
    maker = threading.Thread(target=lambda: other.append(Ranks(2, device="cpu")))
    maker.start()
    maker.join()
    assert other[0].get("world.rank") == [0, 1]
    with pytest.raises(UserError, match="closed while"):
        for _ in other[0].stream("import time\nfor i in range(100): emit(i=i); time.sleep(0.01)"):
            other[0].close()
    with Ranks(1, device="cpu") as one:
        threading.Timer(0.3, one.close).start()
        with pytest.raises(UserError, match="closed while"):
            one.run("import time; time.sleep(20)")
    assert ranks.get("world.rank") == [0, 1]


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


def test_deadline_and_interrupt(ranks):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    with pytest.raises(RankError, match="no answer after 0.5 s. rank 0 is at line 1"):
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
    with pytest.raises(RankError, match="rank 1 was killed by SIGKILL.*Fresh"):
        ranks.run("import os, signal\nif world.rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
                  "import time; time.sleep(60)")
    assert ranks.get("world.rank") == [0, 1]


@pytest.mark.parametrize("killed", [True, False])
def test_nothing_is_left_when_the_owner_ends(killed):
    """Killed while one rank computes and the other is blocked in a collective; or at its own end."""
    blocked = "import time\nfrom tpgpt2_ref.parallel.collectives import barrier\n" \
              "barrier(world) if world.rank else time.sleep(60)"
    code = ("from tpgpt2_ref.notebook import Ranks\nr = Ranks(2, device='cpu')\n"
            "print(r._crew.folder.path, *(p.pid for p in r._crew.processes), r._forker.process.pid, flush=True)\n"
            + killed * f"r.run({blocked!r})")
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline().startswith("2 ranks")
    folder, *ranks = owner.stdout.readline().split()
    ranks = [int(pid) for pid in ranks]
    if killed:
        time.sleep(0.5)
        assert all(map(is_running, ranks))
        owner.kill()
    owner.wait(20)
    deadline = time.monotonic() + 5
    while (any(map(is_running, ranks)) or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(ranks) == 3 and not any(map(is_running, ranks)) and not Path(folder).exists()


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
    _, magic, wrong, one, after, plot = notebook(
        "from tpgpt2_ref.notebook import LivePlot, Ranks\nranks = Ranks(2, device='cpu')",
        "%%ranks\nprint('rank', world.rank)",
        "%%ranks\n" + DEADLOCK,
        "%%rank 1\nfor i in range(20): print('<b>', i)",
        "ranks.get('world.rank')",
        "live = LivePlot(lambda ax, rows: ax.plot([r['i'] for r in rows]))\n"
        "for row in ranks.stream('for i in range(3): emit(i=i)'):\n    live.add(row)")
    assert magic[0].text == "rank 0 │ rank 0\nrank 1 │ rank 1\n"
    shown = "\n".join(wrong[-1].traceback)
    assert wrong[-1].output_type == "error" and "ValueError" in shown and "rank 1 waits in barrier" in shown
    assert "ranks.py" not in shown
    assert one[0].data["text/plain"].splitlines()[-1] == "rank 1 │ <b> 19"
    assert one[0].data["text/html"].startswith("<details") and "&lt;b&gt; 19" in one[0].data["text/html"]
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
@pytest.mark.alone
def test_two_ranks_share_one_gpu_with_nccl():
    with Ranks(2, device="cuda", share_gpu=True) as ranks:
        assert "NCCL" in ranks.describe()
        ranks.run(SUM)
        assert [y.tolist() for y in ranks.get("y")] == [[2, 2], [2, 2]]
        begin = time.monotonic()
        with pytest.raises(CellError, match="rank 0: ValueError: boom. rank 1 waits in barrier #1, line 4"):
            ranks.run(DEADLOCK)
        assert time.monotonic() - begin < 10
        assert ranks.get("world.backend") == ["nccl", "nccl"]

"""Live ranks under a notebook: values, rows, output by rank, and a real notebook. Real gloo ranks."""
import threading
import time

import pytest

from tpgpt2_ref.errors import UserError
from tpgpt2_ref.notebook import LivePlot, Ranks
from tpgpt2_ref.notebook.show import CellError

from .conftest import ROOT

SUM = "from tpgpt2_ref.parallel.collectives import all_reduce as f\ny = f(torch.ones(2, device=world.device), world)"
ROWS = "import time\nfor i in range(5):\n    emit(i=torch.tensor(i), sent=time.time()); time.sleep(0.1)"
DEADLOCK = """if world.rank == 0:
    raise ValueError("boom")
from tpgpt2_ref.parallel.collectives import barrier
barrier(world)
"""


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


def notebook(*cells):
    """The cells' outputs, run in a real notebook kernel."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(book, timeout=60, kernel_name="python3", allow_errors=True,
                   resources={"metadata": {"path": str(ROOT)}}).execute()
    return [cell.outputs for cell in book.cells]


def test_in_a_notebook():
    ready, magic, wrong, one, after, plot = notebook(
        "from tpgpt2_ref.notebook import LivePlot, Ranks\nfrom tpgpt2_ref.notebook.forker import Forker\n"
        "early = Forker.take(users=0)\nranks = Ranks(2, device='cpu')\nprint(early is ranks._forker)",
        "%%ranks\nprint('rank', world.rank)",
        "%%ranks\n" + DEADLOCK,
        "%%rank 1\nfor i in range(20): print('<b>', i)",
        "ranks.get('world.rank')",
        "live = LivePlot(lambda ax, rows: ax.plot([r['i'] for r in rows]))\n"
        "for row in ranks.stream('for i in range(3): emit(i=i)'):\n    live.add(row)")
    assert ready[-1].text.endswith("True\n")
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

"""Every way in which a cell of live ranks can go wrong: they disagree, die, are interrupted or closed."""
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tpgpt2_ref.errors import RankError, UserError
from tpgpt2_ref.notebook import Ranks
from tpgpt2_ref.notebook.show import CellError

from .test_notebook import IMPORT, SUM

UNMATCHED = """
import torch.distributed as dist
if world.rank == 0:
    raise ValueError("before the sum")
dist.all_reduce(torch.ones(1), async_op=True)
"""


def pids(ranks):
    return [p.pid for p in ranks._crew.processes]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except OSError:
        return False


# A group's end that waits for the peers, as NCCL's does and gloo's does not
NCCLS_END = """from torch.distributed import distributed_c10d as c10d
def shutdown(group):
    store = c10d._get_default_store()
    store.set(f"end of rank {world.rank}", "")
    store.wait([f"end of rank {1 - world.rank}"])
c10d.ProcessGroup.shutdown = shutdown"""
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
    "if world.rank: dist.recv(torch.ones(3), 0)":
        "^rank 1 waits in recv #1 of 0 → 1, float32 3 numbers, line 3; rank 0 ended its cell without any$",
    "dist.recv(torch.ones(3), 1) if not world.rank else dist.send(torch.ones(3).int(), 0)":
        "^#1 of 1 → 0 is message of float32 on rank 0 .* and of int32 on rank 1",
    "dist.broadcast(torch.ones(1), world.rank)": "^#1 is broadcast of rank 0 on rank 0 .* and of rank 1 on rank 1",
    "dist.all_reduce(torch.ones(1), (dist.ReduceOp.SUM, dist.ReduceOp.MAX)[world.rank])": "of max on rank 1",
    f"{NCCLS_END}\nif world.rank: dist.destroy_process_group()":
        "^rank 1 waits in destroy_process_group #1, line 9; rank 0 ended its cell without any$",
    f"{NCCLS_END}\ndist.destroy_process_group() if world.rank else dist.all_reduce(torch.ones(4))":
        "^#1 is all_reduce of float32 \\(4,\\) on rank 0 .* and destroy_process_group on rank 1 \\(line 9\\)$",
    f"{NCCLS_END}\nworld.close() if world.rank else all_reduce(torch.ones(4), world)":
        "^#1 is all_reduce of float32 \\(4,\\) on rank 0 .* and destroy_process_group on rank 1 \\(line 9\\)$",
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


PAST = """import torch.distributed as dist
ops, group = torch.ops._c10d_functional, dist.group.WORLD.group_name
def sum_up(x):
    return ops.wait_tensor(ops.all_reduce(x, "sum", group)).tolist()
def gather(x):
    return ops.wait_tensor(ops.all_gather_into_tensor(x, 2, group)).tolist()
"""


@pytest.mark.parametrize("code, said", [
    ("sum_up(torch.ones(2))\nif world.rank: sum_up(torch.ones(3))",
     "rank 1 called all_reduce #2, float32 \\(3,\\); rank 0 ended its cell after #1"),
    ("sum_up(torch.ones(2))\nsum_up(torch.ones(3)) if world.rank else gather(torch.ones(3))",
     "#2 is all_gather of .* on rank 0 and all_reduce of float32 \\(3,\\) on rank 1"),
])
def test_what_goes_past_the_board_is_in_the_flight_recorder(ranks, code, said):
    begin = time.monotonic()
    with pytest.raises(RankError, match=said):
        ranks.run(PAST + code, timeout=20)
    assert time.monotonic() - begin < 4 and ranks.get("world.rank") == [0, 1]


def test_ranks_that_both_send_first(ranks):
    begin = time.monotonic()
    with pytest.raises(RankError, match="rank 0 waits in send #1 of 0 → 1, .* line 3; rank 1 waits in send #1 of 1"):
        ranks.run(IMPORT + "x = torch.ones(3)\ndist.send(x, 1 - world.rank)\ndist.recv(x, 1 - world.rank)")
    assert time.monotonic() - begin < 5 and ranks.get("world.rank") == [0, 1]


def test_messages_that_match(ranks):
    ranks.run(IMPORT + "x, other = torch.zeros(3), 1 - world.rank\nwork = dist.isend(torch.ones(3), other)\n"
              "dist.recv(x, other); work.wait()\n"
              "dist.recv(x) if world.rank else dist.send(x + 1, 1)  # from any rank\n"
              "dist.recv(x, 0, tag=3) if world.rank else dist.send(x + 2, 1, tag=3)")
    assert [x.tolist() for x in ranks.get("x")] == [[1, 1, 1], [3, 3, 3]]


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
    for end in ("dist.destroy_process_group()", "world.close()"):
        with pytest.raises(RankError, match="^rank 0 left its group. Fresh"):
            ranks.run(IMPORT + end)
        assert ranks.get("world.rank") == [0, 1]


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


def test_ranks_in_reserve_take_over_and_may_die_too(ranks):
    ranks._keeps_reserve = True
    try:
        for spoil in (False, True):
            with pytest.raises(RankError, match="Fresh"):
                ranks.run("import os\nif world.rank: os._exit(1)")
            assert ranks.get("world.rank") == [0, 1]
            reserve = [p.pid for p in ranks._reserve.processes]
            if spoil:
                os.kill(reserve[0], signal.SIGKILL)
                time.sleep(0.2)
            with pytest.raises(RankError, match="Fresh"):
                ranks.run("import os\nif world.rank: os._exit(1)")
            assert (pids(ranks) == reserve) == (not spoil) and ranks.get("world.rank") == [0, 1]
            ranks.run(SUM)
    finally:
        ranks._keeps_reserve = False

"""Faults of ranks in a notebook: in a cell, by an interrupt, and around the cells."""
from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable

from .kind import HEAD, Kind, said


def cell(name: str, code: str, says: str = "", devices=("cpu", "cuda"), timeout=100.0) -> Kind:
    return Kind(name, "cell", lambda stage: said(lambda: stage.ranks.run(HEAD + code, timeout=timeout)),
                re.compile(says), devices)


# What DTensor and compiled code call: it goes past Python, so past the board
PAST = """ops, group = torch.ops._c10d_functional, dist.group.WORLD.group_name
def sum_up(x):
    return ops.wait_tensor(ops.all_reduce(x, "sum", group)).tolist()
def gather(x):
    return ops.wait_tensor(ops.all_gather_into_tensor(x, 2, group)).tolist()"""
WAITS = "rank 0 waits in all_reduce #.*rank 1 ended its cell"
CELLS = [
    cell("raises", "if world.rank: raise ValueError('boom')\nbarrier(world)", "rank 1: ValueError: boom"),
    cell("syntax error", "if world.rank:", "SyntaxError|IndentationError"),
    cell("killed", "if world.rank: os.kill(os.getpid(), 9)\nbarrier(world)", "rank 1 was killed by SIGKILL"),
    cell("ends itself", "if world.rank: os._exit(3)\nbarrier(world)", "rank 1 ended with status 3"),
    cell("segfault", "import ctypes\nif world.rank: ctypes.string_at(0)\nbarrier(world)",
         "rank 1 was killed by SIGSEGV"),
    cell("sys.exit", "if world.rank: sys.exit(3)\nbarrier(world)", "rank 1: SystemExit: 3"),
    cell("exit()", "if world.rank: exit()\nbarrier(world)", "exit\\(\\) does not end a rank"),
    cell("quit()", "if world.rank: quit()\nbarrier(world)", "exit\\(\\) does not end a rank"),
    cell("asks for too much memory", "x = torch.empty(10**15, device=here)\nbarrier(world)", "memory|allocate"),
    cell("out of memory to the last byte", "import resource\nif world.rank:\n"
         "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
         "    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))\n    x = []\n"
         "    while True: x.append(bytes(1000))\nbarrier(world)", "rank 1", ("cpu",)),
    cell("device assert", "x = torch.arange(3, device=here)\n"
         "if world.rank: x[torch.tensor([9], device=here)]\nbarrier(world)", "rank 1", ("cuda",)),
    cell("never joins", "if not world.rank: all_reduce(torch.ones(4, device=here), world)", WAITS),
    cell("one collective too many", "for _ in range(3 - world.rank): dist.all_reduce(torch.ones(4, device=here))",
         WAITS),
    cell("another operation", "dist.barrier() if world.rank else dist.all_reduce(torch.ones(4, device=here))",
         "#1 is all_reduce .* on rank 0 .* and barrier on rank 1"),
    cell("asynchronous and unmatched", "if not world.rank: work = dist.all_reduce(torch.ones(4, device=here), "
         "async_op=True)\nelse: time.sleep(0.5)", "rank 0 called all_reduce #1.*rank 1 ended its cell"),
    *(cell(f"shapes {a} and {b}", f"dist.all_reduce(torch.ones({b} if world.rank else {a}, device=here))",
           re.escape(f"#1 is all_reduce of {a} on rank 0") + ".*" + re.escape(f"of {b} on rank 1"))
      for a, b in (("(4,)", "(5,)"), ("(2, 3)", "(3, 2)"))),
    *(cell(f"{a} and {b}",
           f"dist.all_reduce(torch.ones(4, dtype=torch.{b} if world.rank else torch.{a}, device=here))",
           f"#1 is all_reduce of {a} on rank 0.*of {b} on rank 1")
      for a, b in (("float32", "float64"), ("float32", "int32"), ("bfloat16", "float16"))),
    cell("different roots", "dist.broadcast(torch.ones(4, device=here), world.rank)",
         "rank 0 on rank 0.*rank 1 on rank 1"),
    cell("receives what nobody sends", "if not world.rank: dist.recv(torch.ones(1, device=here), 1)",
         "rank 0 waits in recv #1 of 1 → 0.*rank 1 ended its cell"),
    cell("both send first", "x = torch.ones(3, device=here)\ndist.send(x, 1 - world.rank)\n"
         "dist.recv(x, 1 - world.rank)",
         "rank 0 waits in send #1.*rank 1 waits in send #1"),
    cell("another length than was sent", "x = torch.ones(3 - world.rank, device=here)\n"
         "dist.send(x, 1) if not world.rank else dist.recv(x, 0)", "#1 of 0 → 1 is message of 3 numbers on rank 0"),
    cell("never joins, past the board", f"{PAST}\nif not world.rank: sum_up(torch.ones(4, device=here))",
         "rank 0 (called|waits in) all_reduce #1, float32 \\(4,\\); rank 1 ended its cell without any"),
    cell("another operation, past the board", f"{PAST}\nx = torch.ones(4, device=here)\n"
         "gather(x) if world.rank else sum_up(x)", "#1 is all_reduce of .* on rank 0 and all_gather of .* on rank 1"),
    cell("time is up", "while True: pass", "no answer after 1 s", timeout=1.0),
    cell("destroys its group", "if world.rank: dist.destroy_process_group()",
         "rank 1 waits in destroy_process_group #1.*rank 0 ended its cell"),
    cell("destroys its group under a sum",
         "dist.destroy_process_group() if world.rank else dist.all_reduce(torch.ones(4, device=here))",
         "#1 is all_reduce of .* on rank 0 .* and destroy_process_group on rank 1"),
    cell("closes its world alone", "if world.rank: world.close()", "rank 1 waits in destroy_process_group #1"),
    cell("closes its world", "world.close()", "left its group"),
    cell("overwrites its names", "world.rank = 5\nworld = _rank = emit = torch = None"),
    cell("threads left behind", "def late():\n    threading.excepthook = lambda e: None\n    for _ in range(9):\n"
         "        time.sleep(0.1); dist.all_reduce(torch.ones(4, device=here))\n"
         "if world.rank: threading.Thread(target=late).start()"),
]

SWALLOWS = "end = time.time() + 60\nwhile time.time() < end:\n" \
           "    try: time.sleep(1)\n    except KeyboardInterrupt: pass"


def interrupted(pauses: list[float], code: str):
    def run(stage) -> str | None:
        pressed = threading.Event()  # a thread whose join was interrupted counts as ended in Python 3.11
        first = time.monotonic() + pauses[0]
        threading.Thread(target=_press, args=(pauses, pressed)).start()
        try:
            return said(lambda: stage.ranks.run(HEAD + code))
        finally:
            stage.message_s = time.monotonic() - first  # the message is not late because the finger comes late
            while not pressed.is_set():  # the later interrupts come where they come
                said(lambda: pressed.wait(0.1))
            said(lambda: time.sleep(0.1))  # the last one
    return run


def _press(pauses: list[float], pressed: threading.Event) -> None:
    for pause in pauses:
        time.sleep(pause)
        os.kill(os.getpid(), signal.SIGINT)
    pressed.set()


def while_fresh_ranks_start(stage) -> str | None:
    said(lambda: stage.ranks.run(HEAD + "os._exit(1)"))
    return interrupted([0.1, 0.2], "time.sleep(9)")(stage)


def at_random_moments(stage) -> str | None:
    pauses = [stage.random.random() for _ in range(stage.random.randint(1, 6))]
    return interrupted(pauses, "time.sleep(9) if world.rank else barrier(world)")(stage)


KEY = re.compile("KeyboardInterrupt")
INTERRUPTS = [
    Kind("interrupted once", "interrupt", interrupted([0.3], "while True: pass"), KEY),
    Kind("interrupted twice", "interrupt", interrupted([0.3, 0.2], "barrier(world) if world.rank else time.sleep(9)"),
         KEY),
    Kind("interrupted five times and swallowed", "interrupt", interrupted([0.3] + [0.15] * 4, SWALLOWS), KEY),
    Kind("interrupted forty times", "interrupt", interrupted([0.3] + [0.02] * 39, SWALLOWS), KEY),
    Kind("interrupted while fresh ranks start", "interrupt", while_fresh_ranks_start, KEY),
    Kind("interrupted at random moments", "interrupt", at_random_moments, KEY),
]


def around(before: Callable, code: str = "time.sleep(0.1)"):
    def run(stage) -> str | None:
        before(stage)
        return said(lambda: stage.ranks.run(HEAD + code))
    return run


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)


def leaves_a_stream(stage) -> None:
    for _ in stage.ranks.stream(HEAD + "while True: emit(a=1); time.sleep(0.01)"):
        return


def slow_reader(stage) -> str | None:
    rows, paused, begin = 0, 0.0, time.monotonic()
    for _ in stage.ranks.stream("for i in range(3000): emit(i=i)"):
        rows, pause = rows + 1, time.monotonic()
        time.sleep(0.0003)
        paused += time.monotonic() - pause
    stage.message_s = time.monotonic() - begin - paused  # the ranks are not late because the reader is
    return f"{rows} of {3000 * stage.ranks.size} rows"


def closes_in_its_stream(ranks) -> None:
    for _ in ranks.stream("import time\nfor i in range(99): emit(i=i); time.sleep(0.01)"):
        ranks.close()


def closed_by_a_thread(ranks) -> None:
    threading.Timer(0.3, ranks.close).start()
    ranks.run("import time; time.sleep(30)")


def made_in_a_thread(stage) -> None:
    maker = threading.Thread(target=stage.fresh)
    maker.start()
    maker.join()


GONE = re.compile("Fresh")
AROUND = [
    Kind("killed between cells", "around", around(lambda s: _kill(s.ranks._crew.processes[1].pid)), GONE),
    Kind("folder removed between cells", "around", around(lambda s: shutil.rmtree(s.ranks._crew.folder.path)), GONE),
    Kind("folder removed while a cell runs", "around", around(lambda s: threading.Timer(
        0.3, shutil.rmtree, [s.ranks._crew.folder.path]).start(), "time.sleep(30)"), GONE),
    Kind("the process that forks them killed", "around", around(lambda s: _kill(s.ranks._forker.process.pid)), GONE),
    Kind("stream left early", "around", leaves_a_stream),
    Kind("reader slower than the rows", "around", slow_reader, re.compile("^6000 of")),
    Kind("closed inside a stream", "around",
         lambda s: said(lambda: closes_in_its_stream(s.ranks)), re.compile("closed"),
         ends_ranks=True),
    Kind("closed by another thread", "around",
         lambda s: said(lambda: closed_by_a_thread(s.ranks)), re.compile("closed"),
         ends_ranks=True),
    Kind("made in a thread that ends", "around", made_in_a_thread),
]

"""The kinds of faults that `faults.py` tries: on ranks in a notebook, around them, at their end, malformed input.

A kind's `run(stage)` makes the fault once and returns what was said: the error's text, or None where nothing has to be
said. `says` is what a good message holds. What must hold afterwards is the campaign's to look at.
"""
from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tpgpt2_ref.bench.two_hosts import two_hosts  # noqa: E402

HEAD = """import os, signal, sys, threading, time
import torch.distributed as dist
here = world.device
from tpgpt2_ref.parallel.collectives import all_reduce, barrier
"""
ANY = re.compile("")


@dataclass(frozen=True)
class Kind:
    name: str
    group: str  # cell, interrupt, around, leak, stranger, command, malformed
    run: Callable
    says: re.Pattern = ANY
    devices: tuple[str, ...] = ("cpu", "cuda")
    ends_ranks: bool = False  # on purpose: the campaign starts others
    share: float = 1.0  # of the tries asked for: fifty starts are one try


def said(call) -> str | None:
    try:
        call()
    except (Exception, KeyboardInterrupt) as e:
        return f"{type(e).__name__}: {e}"
    return None


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
    cell("destroys its group", "if world.rank: dist.destroy_process_group()", "rank 1 left its group"),
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
    rows = 0
    for _ in stage.ranks.stream("for i in range(3000): emit(i=i)"):
        rows += 1
        time.sleep(0.0003)
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

# What is left of ranks when their owner ends. `how` runs in a process of its own, with its own TMPDIR
START = "from tpgpt2_ref.notebook import Ranks\nimport os, signal, time\nr = Ranks(2, device={device!r})\n"
BLOCKED = "import time\nfrom tpgpt2_ref.parallel.collectives import barrier\n" \
          "barrier(world) if world.rank else time.sleep(60)"
ENDS = {
    "ends normally": "", "closes": "r.close()", "deletes": "del r", "raises": "raise SystemExit(1)",
    "os._exit": "os._exit(1)", "SIGTERM": "os.kill(os.getpid(), 15)", "SIGHUP": "os.kill(os.getpid(), 1)",
    "kill -9": "os.kill(os.getpid(), 9)", "two at once": "q = Ranks(1, device={device!r})\nos.kill(os.getpid(), 9)",
    "kill -9 while blocked": "import threading\nthreading.Timer(0.5, os.kill, [os.getpid(), 9]).start()\n"
                             f"r.run({BLOCKED!r})",
    "kill -9 while starting": "r.close()\nimport threading\n"
                              "threading.Timer({pause}, os.kill, [os.getpid(), 9]).start()\n"
                              "q = Ranks(2, device={device!r})\ntime.sleep(9)",
    "starts fifty": "for _ in range(50): Ranks(1, device={device!r}).close()",
}


def leaves(program: list[str], stage, kill: int | None = None) -> str | None:
    """Run it in a place of its own; what is left 5 s after its end, None if nothing is."""
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        shm, mark = set(os.listdir("/dev/shm")), f"FAULTS_{os.getpid()}_{time.monotonic_ns()}"
        owner = subprocess.Popen(program, cwd=ROOT, env={**os.environ, "TMPDIR": place, mark: "1"},
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kill is not None:
            time.sleep(1 + 4 * stage.random.random())
            owner.send_signal(kill)
        try:
            owner.wait(240)
        except subprocess.TimeoutExpired:
            owner.kill()
            return "it does not end"
        deadline = time.monotonic() + 5
        while (left := _left(mark, place, shm)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in _marked(mark):
            os.kill(pid, signal.SIGKILL)
        return left


def _left(mark: str, place: str, shm: set) -> str | None:
    processes, files = _marked(mark), os.listdir(place)
    memory = [f for f in set(os.listdir("/dev/shm")) - shm if "torch" in f or "gloo" in f or "nccl" in f]
    memory = [f for f in memory if not any(f"/dev/shm/{f}" in maps for maps in _maps())]  # those are other tries'
    left = f"{len(processes)} processes, files {files}, shared memory {memory}"
    return left if processes or files or memory else None


def _maps():
    """What each process has mapped."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            yield Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            pass


def _marked(mark: str) -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(int(pid))
        except OSError:
            pass
    return found


GENERATE = [sys.executable, "-m", "tpgpt2_ref", "generate", "--model", "tiny", "--tp", "2", "--prompt-ids", "1,2,3",
            "--max-new-tokens", "100"]
LEAKS = [
    *(Kind(f"left by a notebook that {how}", "leak", lambda stage, code=code: leaves([sys.executable, "-c", (
        START + code).format(device=stage.device, pause=round(stage.random.random() * 2, 2))], stage),
            share=0.1 if "fifty" in how else 1.0)
      for how, code in ENDS.items()),
    *(Kind(f"left by generate --tp 2 and {signal.Signals(number).name}", "leak", lambda stage, number=number: leaves(
        [*GENERATE, "--device", stage.device], stage, number)) for number in (9, 15, 2)),
]


# Live ranks and a running `generate` on one host, a stranger on another who knows what ports to try
REACH = """
import socket, sys
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((sys.argv[1], port), 3).close()
        print(port)
    except OSError:
        pass
"""
LISTENER = "import socket\ns = socket.create_server(('', 0))\nprint(s.getsockname()[1], flush=True)\ninput()"


def reached_from_another_host(stage) -> str | None:
    """What of ours a stranger reached, None if nothing: a listener of this test's own must be found, and it alone."""
    with two_hosts() as (here, stranger):
        def inside(host, *program, **kwargs):
            return subprocess.Popen(["ip", "netns", "exec", host.namespace, "env", f"PYTHONPATH={ROOT}", sys.executable,
                                     *program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **kwargs)

        times = Path(stage.place) / f"times-{time.monotonic_ns()}"
        times.touch()
        programs = [inside(here, "-c", START.format(device=stage.device) + "input()"),
                    inside(here, *GENERATE[1:-1], "250", "--device", stage.device,
                           env={**os.environ, "TPGPT2_TIMES": str(times)}),
                    inside(here, "-c", LISTENER)]
        try:
            programs[0].stdout.readline()
            while "model loaded" not in times.read_text() and programs[1].poll() is None:
                time.sleep(0.02)
            tables = subprocess.run(["ip", "netns", "exec", here.namespace, "cat", *(
                f"/proc/net/{table}" for table in ("tcp", "tcp6", "udp", "udp6"))], capture_output=True, text=True)
            rows = [line.split() for line in tables.stdout.splitlines() if ":" in line.split()[0]]
            bound = {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] in ("0A", "07")}  # listen, datagrams
            found = inside(stranger, "-c", REACH, here.address, *map(str, bound))
            reached = found.communicate(timeout=60)[0].split()
            if [p.poll() for p in programs] != [None] * 3 or len(bound) < 5:
                return f"not all programs ran: {[p.poll() for p in programs]}, {len(bound)} ports"
            own = programs[2].stdout.readline().strip()
        finally:
            for program in programs:
                program.kill()
                program.communicate()
    return None if reached == [own] else f"reached {reached}, its own is {own}"


STRANGERS = [Kind("reached from another host", "stranger", reached_from_another_host, devices=("cpu",))]


# What the environment may hold when a command starts
def command(env: dict[str, str], *argv: str, twice: bool = False):
    """One line on stderr and status 1 or 2, or success; None if so, otherwise what came."""
    def run(stage) -> str | None:
        program = [sys.executable, "-m", "tpgpt2_ref", "generate", "--model", "tiny", "--device", "cpu", "--prompt-ids",
                   "1,2,3", "--max-new-tokens", "2", *argv]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MASTER_", "RANK", "WORLD_SIZE"))}
        runs = [subprocess.Popen(program, cwd=ROOT, env={**clean, **env}, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True) for _ in range(1 + twice)]
        try:
            ended = [(p.communicate(timeout=60)[1], p.returncode) for p in runs]
        except subprocess.TimeoutExpired:
            return "hangs"
        finally:
            for p in runs:
                p.kill()
        bad = [err for err, status in ended if "Traceback" in err or status not in (0, 1, 2)
               or status and not err.strip().splitlines()[-1].startswith("error: ")]
        return bad[0] if bad else None
    return run


def two_groups_on_one_port(stage) -> str | None:
    """Four processes by hand, two of each rank: two run, two say in one line why they don't, within 20 s."""
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 9999)}
    ranks = [subprocess.Popen([*GENERATE[:-1], "2", "--device", "cpu"], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.PIPE, env={**env, "RANK": str(i % 2)}) for i in range(4)]
    try:
        said = [p.communicate(timeout=30)[1].strip() for p in ranks]
    except subprocess.TimeoutExpired:
        return "hangs"
    finally:
        for p in ranks:
            p.kill()
    refused = [text for p, text in zip(ranks, said) if p.returncode == 2]
    if sorted(p.returncode for p in ranks) != [0, 0, 2, 2] or not all(
            text.startswith("error: ") and "MASTER_PORT" in text and "\n" not in text for text in refused):
        return f"{[p.returncode for p in ranks]}: {said}"
    return None


COMMANDS = [Kind(name, "command", command(*what, twice=name.startswith("twice")), devices=("cpu",)) for name, what in {
    "RANK=5 of 2": ({"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29871"},),
    "RANK without MASTER_ADDR": ({"RANK": "0", "WORLD_SIZE": "2"},),
    "RANK=x": ({"RANK": "x", "WORLD_SIZE": "2"},),
    "MASTER_ADDR is no host": ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "no.such.host.invalid",
                                "MASTER_PORT": "29872"},),
    "MASTER_PORT=99999": ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"},),
    "twice the same MASTER_PORT at once": ({"MASTER_PORT": "29873"}, "--tp", "2"),
    "MASTER_ADDR is no host, own ranks": ({"MASTER_ADDR": "no.such.host.invalid"}, "--tp", "2"),
}.items()]
COMMANDS.append(Kind("two groups on one MASTER_PORT", "command", two_groups_on_one_port, devices=("cpu",)))


def malformed(stage) -> str | None:
    """One seeded malformed input of the command line in this process: None, or the traceback or hang that came."""
    rng, place = stage.random, Path(stage.place) / "malformed"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ROOT / "tpgpt2_ref/checkpoints/tiny", place)
    victim = rng.choice([p for p in place.iterdir() if p.is_file()])
    _spoil(victim, rng)
    argv = rng.choice([["generate", "--prompt", "Return", "--max-new-tokens", "2"],
                       ["logits", "--prompt-ids", "1,2", "--out", str(place / "o.npy")]])
    begin = time.monotonic()
    try:
        status, out, err = stage.in_this_process([*argv, "--model", str(place), "--device", "cpu"])
    except Exception as e:
        return f"{victim.name}: {type(e).__name__}: {e}"
    if time.monotonic() - begin > 10:
        return f"{victim.name}: {time.monotonic() - begin:.0f} s"
    half = [p.name for p in place.glob("o*") if status]
    if status not in (0, 2) or "Traceback" in err or half or status == 2 and err.count("\n") != 1:
        return f"{victim.name}: status {status}, left {half}: {err[-300:]}"
    return None


def _spoil(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    how = rng.choice(["cut", "flip", "junk", "json"])
    if how == "json" and path.suffix == ".json":
        document = json.loads(data)
        keys = list(document)
        for _ in range(rng.randint(1, 3)):
            document[rng.choice(keys)] = rng.choice([None, -1, 0, 1.5, "x", [], {}, True, 2**70, float("nan"), [1],
                                                     "\ud800"])
        path.write_text(json.dumps(document))
    elif how == "cut":
        path.write_bytes(data[:rng.randrange(len(data))])
    elif how == "junk":
        path.write_bytes(rng.choice([b"", b"{", b"[]", b"null", b"[" * 100000, b"\xff\xfe\x00", b"3", b'"x"']))
    else:
        at = [rng.randrange(min(len(data), 4096)) for _ in range(3)]
        path.write_bytes(bytes(b ^ rng.randrange(1, 256) if i in at else b for i, b in enumerate(data)))


MALFORMED = [Kind("malformed checkpoint", "malformed", malformed, devices=("cpu",))]
KINDS = [*CELLS, *INTERRUPTS, *AROUND, *LEAKS, *STRANGERS, *COMMANDS, *MALFORMED]

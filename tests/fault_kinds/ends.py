"""What is left of ranks when their owner ends, and what a stranger on another host can reach of them."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tpgpt2_ref.bench.two_hosts import two_hosts

from .kind import ROOT, Kind

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

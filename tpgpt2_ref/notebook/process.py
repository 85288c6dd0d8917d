"""One rank as the notebook sees it: a process to start, ask, interrupt and kill, and its message channels."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty
from uuid import uuid4

from ..errors import RankError

REPOSITORY = Path(__file__).parents[2]


class RankProcess:
    """A running `rank_kernel.py`. One request at a time: `submit`, then `messages` until `done`."""

    def __init__(self, rank: int, folder: Path, env: dict[str, str]):
        from jupyter_client.blocking import BlockingKernelClient
        from jupyter_client.connect import write_connection_file

        self.rank, self.connection = rank, str(folder / f"rank{rank}.json")
        write_connection_file(self.connection, transport="ipc", ip=str(folder / f"rank{rank}"),
                              key=uuid4().hex.encode())
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        self.log = folder / f"rank{rank}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tpgpt2_ref.notebook.rank_kernel", self.connection],
                env={**os.environ, **env, "PYTHONPATH": path, "JPY_PARENT_PID": str(os.getpid())},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.client = BlockingKernelClient(connection_file=self.connection)
        self.client.load_connection_file()
        self.client.start_channels(shell=True, iopub=True, stdin=False, hb=False, control=False)
        self.request, self.reply, self.idle = "", None, False

    def wait_for_kernel(self, deadline: float) -> None:
        """Return once the kernel answers and its output is heard. Raises RankError if it died or is too late."""
        while True:
            self.client.kernel_info()
            try:
                self.client.iopub_channel.get_msg(timeout=0.1)
                return
            except Empty:
                if self.death():
                    last = self.log.read_text().strip().splitlines()[-1:]
                    raise RankError(": ".join([f"rank {self.rank} {self.death()} while it started", *last])) from None
                if time.monotonic() > deadline:
                    raise RankError(f"rank {self.rank} did not start in time; its log is {self.log}") from None

    def submit(self, code: str, silent: bool = False) -> None:
        self.reply, self.idle = None, False
        self.request = self.client.execute(code, silent=silent, store_history=False, allow_stdin=False)

    @property
    def done(self) -> bool:
        return self.idle and self.reply is not None

    @property
    def error(self) -> dict | None:
        """The reply's ename, evalue and traceback, if the last request failed."""
        return self.reply if self.reply is not None and self.reply["status"] != "ok" else None

    def sockets(self) -> list:
        return [self.client.shell_channel.socket, self.client.iopub_channel.socket]

    def messages(self) -> list[dict]:
        """What the last request has put out since the last look, in order. Never waits, even on a flood."""
        out = []
        for channel in (self.client.iopub_channel, self.client.shell_channel):
            for _ in range(100):
                if not channel.msg_ready():
                    break
                message = channel.get_msg(timeout=0)
                kind, content = message["header"]["msg_type"], message["content"]
                if message["parent_header"].get("msg_id") != self.request:
                    continue
                if kind == "execute_reply":
                    self.reply = content
                elif kind == "status":
                    self.idle = self.idle or content["execution_state"] == "idle"
                else:
                    out.append({"kind": kind, **content})
        return out

    def death(self) -> str | None:
        """How the process ended, or None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def where(self) -> str:
        """What the rank is doing now, from its Python stack: "in all_reduce, at line 3 of the cell"."""
        file = Path(self.connection).with_suffix(".stack")
        seen, deadline = file.stat().st_size, time.monotonic() + 0.5
        self.process.send_signal(signal.SIGUSR1)
        while time.monotonic() < deadline and file.stat().st_size == seen:
            time.sleep(0.01)
        frames = re.findall(r'File "(.*)", line (\d+) in (\S+)', file.read_text()[seen:])  # the innermost first
        calls = []
        for path, line, function in frames:
            if "ipykernel_" in path:  # the cell's own code
                return ", ".join([*calls[:1], f"at line {line} of the cell"])
            if function[0] != "_" and function != "wrapper":
                calls.append(f"in {function}")
        return "busy"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.client.stop_channels()

"""One rank as the notebook sees it: a process to start, ask, interrupt and kill, and its message channels."""
from __future__ import annotations

import os
import re
import signal
import time
from ast import literal_eval
from pathlib import Path
from queue import Empty
from uuid import uuid4

from ..errors import RankError
from .forker import GONE, Forker


class RankProcess:
    """A running `rank_kernel.py`. One request at a time: `submit`, then `messages` until `done`."""

    def __init__(self, rank: int, folder: Path, forker: Forker, env: dict[str, str], device: str):
        from jupyter_client.blocking import BlockingKernelClient
        from jupyter_client.connect import write_connection_file

        self.rank, self.forker, self.connection = rank, forker, str(folder / f"rank{rank}.json")
        write_connection_file(self.connection, transport="ipc", ip=str(folder / f"r{rank}"), key=uuid4().hex.encode())
        self.log = folder / f"rank{rank}.log"
        self.number = forker.start(folder, [self.connection, device], str(self.log), {
            **os.environ, **env, "JPY_PARENT_PID": str(forker.process.pid)})
        self.client = BlockingKernelClient(connection_file=self.connection)
        self.client.load_connection_file()
        self.client.context.rcvhwm = 0  # what a slow reader has not read yet is kept
        self.client.start_channels(shell=True, iopub=True, stdin=False, hb=False, control=False)
        self.request, self.reply, self.idle, self.heard_at = "", None, False, 0.0
        self.used, self.used_at = -1.0, 0.0
        self.later, self.answers = "", {}  # the request after the first; replies by request
        self.hears, self.about = False, ()  # whether its output is heard; (backend, device), for people

    @property
    def pid(self) -> int:
        return self.forker.pid(self.number)

    def wait_for_kernel(self, deadline: float) -> None:
        """Return once the kernel has carried out its first request and its output is heard.

        Raises RankError if it failed, died or is too late. What is interrupted here can be called again.
        """
        while self.reply is None:
            self.messages()
            self._still_starting(deadline)
            time.sleep(0.01)
        if self.error:
            raise RankError(f"rank {self.rank} could not join: {self.error['evalue']}")
        self.about = literal_eval(self.reply["user_expressions"]["about"]["data"]["text/plain"])
        while not self.hears:
            self.client.kernel_info()
            try:
                self.client.iopub_channel.get_msg(timeout=0.1)
                self.hears = True
            except Empty:
                self._still_starting(deadline)
        self.idle = True

    def wait_for_second(self, deadline: float) -> None:
        """Return once the request that followed the first is carried out; raises as `wait_for_kernel` does."""
        while self.later not in self.answers:
            self.messages()
            self._still_starting(deadline)
            time.sleep(0.01)
        if self.answers[self.later]["status"] != "ok":
            raise RankError(f"rank {self.rank} could not join: {self.answers[self.later].get('evalue', 'interrupted')}")

    def _still_starting(self, deadline: float) -> None:
        if self.death():
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:] if self.log.exists() else []
            raise RankError(": ".join([f"rank {self.rank} {self.death()} while it started", *last]))
        if time.monotonic() > deadline:
            raise RankError(f"rank {self.rank} did not start in time; its log is {self.log}")

    def submit_two(self, code: str, about: str, later: str) -> None:
        """The first two requests: the second is carried out while the reader reads."""
        self.request = self.client.execute(code, store_history=False, allow_stdin=False,
                                           user_expressions={"about": about})
        self.later = self.client.execute(later, silent=True, store_history=False, allow_stdin=False)

    def submit(self, code: str, silent: bool = False) -> None:
        self.reply, self.idle, self.heard_at = None, False, time.monotonic()
        # stop_on_error would abort what comes within 0.1 s after an error: the next cell
        self.request = self.client.execute(code, silent=silent, store_history=False, allow_stdin=False,
                                           stop_on_error=False)

    @property
    def done(self) -> bool:
        return self.idle and self.reply is not None

    @property
    def error(self) -> dict | None:
        """The reply's ename, evalue and traceback, if the last request failed."""
        if self.reply is None or self.reply["status"] == "ok":
            return None
        return {"ename": "Aborted", "evalue": "the rank did not run this cell", "traceback": [], **self.reply}

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
                self.hears = self.hears or channel is self.client.iopub_channel
                kind, content = message["header"]["msg_type"], message["content"]
                if message["parent_header"].get("msg_id") != self.request:
                    if kind == "execute_reply":
                        self.answers[message["parent_header"].get("msg_id")] = content
                    continue
                self.heard_at = time.monotonic()
                if kind == "execute_reply":
                    self.reply = content
                elif kind == "status":
                    self.idle = self.idle or content["execution_state"] == "idle"
                else:
                    out.append({"kind": kind, **content})
        return out

    def death(self) -> str | None:
        """How the process ended, or None while it runs."""
        status = self.forker.status(self.number)
        if status is None:
            return None
        if status == GONE and not self.forker.alive:
            return "went with the process that it was forked from"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def asleep(self, seconds: float) -> bool:
        """Whether it has neither said nor computed anything for so long."""
        import psutil

        try:
            used = sum(psutil.Process(self.pid).cpu_times()[:2])
        except psutil.Error:
            return False
        if used != self.used:
            self.used, self.used_at = used, time.monotonic()
        return time.monotonic() - max(self.heard_at, self.used_at) > seconds

    def interrupt(self) -> None:
        self.forker.signal(self.number, signal.SIGINT)

    def line(self) -> str:
        """Where the rank is now, from its Python stack, even while it is blocked: "line 3, in all_reduce"."""
        file = Path(self.connection).with_suffix(".stack")
        if not file.exists():
            return ""
        seen, deadline = file.stat().st_size, time.monotonic() + 0.5
        self.forker.signal(self.number, signal.SIGUSR1)
        while time.monotonic() < deadline and file.stat().st_size == seen:
            time.sleep(0.01)
        frames = re.findall(r'File "(.*)", line (\d+) in (\S+)', file.read_text()[seen:])  # the innermost first
        calls = []
        for path, line, function in frames:
            if "ipykernel_" in path:  # the cell's own code
                return ", ".join([f"line {line}", *calls[:1]])
            if function[0] != "_" and function != "wrapper":
                calls.append(f"in {function}")
        return ""

    def kill(self) -> None:
        """End the process and all that it started. From any thread."""
        self.forker.signal(self.number, signal.SIGKILL)

    def bury(self) -> None:
        """After `kill`: wait until it has ended."""
        self.forker.wait(self.number, 10.0)

    def hang_up(self) -> None:
        """Close the channels; only from the thread that uses them."""
        self.client.stop_channels()
        self.client.context.destroy(linger=0)

"""Live ranks under a notebook: one IPython kernel a rank, joined in a process group.

    ranks = Ranks(2)                  NCCL where there are two GPUs, otherwise gloo; it says which
    ranks.run("x = torch.ones(3)")    on all ranks; output is shown by rank
    ranks.get("x.sum()")              [3.0, 3.0]: values by rank
    for row in ranks.stream(code):    rows that the code emits, as they come
    %%ranks                           the same as `run`, for a whole cell

On a rank the names `world`, `torch` and `emit` are there. The ranks end with this process, however it ends.
A rank that raises while others wait for it costs at most a few seconds: ranks that are out of step are replaced.
"""
from __future__ import annotations

import base64
import pickle
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from ..errors import RankError, UserError
from ..parallel.launch import free_port, gpu_count, rank_env
from ..parallel.torchrun import share_gpu as share_gpu_is_set
from .process import RankProcess
from .rank_kernel import ROW, VALUE
from .show import CellError, Show

START = 60.0  # seconds that ranks may take to start: torch is imported in each
GRACE = 1.5  # seconds that the others get to end by themselves once a rank has failed, and again once interrupted
IN_STEP = 5.0  # seconds for one small collective, on a machine that may be busy


class Ranks:
    """N live ranks. Usable in a `with` block; otherwise `close()`, or the end of this process, ends them.

    device         "cuda", "cpu", or None: GPUs if there are enough for every rank to have its own
    share_gpu      let ranks share GPUs (correctness only, no timing means anything); None: TPGPT2_SHARE_GPU=1 says so
    group_timeout  seconds after which a collective that some rank never joined is an error
    """

    def __init__(self, size: int = 2, device: str | None = None, share_gpu: bool | None = None,
                 group_timeout: float = 60.0):
        if size < 1:
            raise UserError(f"Ranks({size}): at least one rank")
        if device not in (None, "cpu", "cuda"):
            raise UserError(f"Ranks(device={device!r}): \"cpu\", \"cuda\" or None")
        self.share_gpu = share_gpu_is_set() if share_gpu is None else share_gpu
        gpus = gpu_count()
        enough = gpus >= (1 if self.share_gpu else size)
        if device == "cuda" and not enough:
            raise UserError(f"Ranks({size}, device=\"cuda\") needs {size} GPUs, this machine has {gpus}: use "
                            "device=\"cpu\"" + (", or share_gpu=True to check that the code is right" if gpus else ""))
        self.size, self.device, self.group_timeout = size, device or ("cuda" if enough else "cpu"), group_timeout
        self._processes: list[RankProcess] = []
        self._busy = False
        self._start()
        self._join()
        print(self.describe())
        _register_magic(self)

    def describe(self) -> str:
        """What the ranks are, in one line."""
        names = [name for _, name in self._about]
        where = names[0] if len(set(names)) == 1 else ", ".join(names)
        backend, gpus = self._about[0][0].replace("nccl", "NCCL"), gpu_count()
        if self.device == "cuda":
            count = f"{min(gpus, self.size)}x " if self.size > 1 else ""
            where = count + where + (", shared: right or wrong shows, speed does not" if gpus < self.size else "")
        elif gpus:
            where += f" (this machine has {gpus} GPU{'s' * (gpus > 1)}, NCCL wants one a rank)"
        return f"{self.size} rank{'s' * (self.size > 1)}, {backend} on {where}"

    def run(self, code: str, timeout: float = 300.0) -> None:
        """Run code on every rank and show its output by rank. `timeout`: seconds until it is given up."""
        show = Show(self.size)
        try:
            for rank, message in self._converse(code, timeout):
                show.message(rank, message)
        finally:
            show.close()

    def get(self, expression: str, timeout: float = 300.0) -> list:
        """The expression's value on every rank, by rank. Tensors arrive on the CPU."""
        values = [None] * self.size
        for rank, message in self._converse(f"_rank.send({expression}\n)", timeout):
            if VALUE in message.get("data", {}):
                values[rank] = pickle.loads(base64.b64decode(message["data"][VALUE]))
        return values

    def stream(self, code: str, timeout: float = 300.0) -> Iterator[dict]:
        """Run code on every rank; yield each row that it emits, with its "rank", as it comes."""
        show = Show(self.size)
        try:
            for rank, message in self._converse(code, timeout):
                if ROW in message.get("data", {}):
                    yield {**message["data"][ROW], "rank": rank}
                else:
                    show.message(rank, message)
        finally:
            show.close()

    def close(self) -> None:
        """End the ranks. What is defined on them is gone."""
        if self._processes:
            self._end()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    # Starting and replacing

    def _start(self) -> None:
        """Start the processes; `_join` waits for them."""
        port, folder = free_port(), Path(tempfile.mkdtemp(prefix="tpgpt2-"))
        shared = {"TPGPT2_SHARE_GPU": str(int(self.share_gpu))}
        self._end = weakref.finalize(self, _end, self._processes, folder)
        for rank in range(self.size):
            self._processes.append(RankProcess(rank, folder, {**rank_env(rank, self.size, port), **shared}))
        self._joined = False

    def _join(self) -> None:
        """Wait until the ranks have formed their group."""
        try:
            deadline = time.monotonic() + START
            for p in self._processes:
                p.wait_for_kernel(deadline)
            code = ("from tpgpt2_ref.notebook.rank_kernel import RankSide\n"
                    f"_rank = RankSide({self.device!r}, {self.group_timeout})\n")
            self._joined = True
            for _ in self._converse(code, START):
                pass
            self._about = self.get("(world.backend, _rank.device_name())")
        except BaseException:
            self.close()
            raise

    def _replace(self) -> None:
        self.close()
        self._processes = []
        self._start()

    # Talking to them

    def _converse(self, code: str, timeout: float) -> Iterator[tuple[int, dict]]:
        """Run code on every rank; yield (rank, output message) as they come.

        Raises CellError if a rank raised, RankError if one died or the time is up. Afterwards the ranks are ready
        for the next request: the same ones if they are in step, otherwise fresh ones.
        """
        if not self._processes:
            raise UserError("these ranks are closed: start new ones with Ranks(...)")
        if self._busy:
            raise UserError("the ranks are still busy with a stream: finish its loop first")
        if not self._joined:
            self._join()
        self._busy = True
        try:
            for p in self._processes:
                p.submit(code)
            try:
                yield from self._until_done(time.monotonic() + timeout)
            except BaseException:  # an interrupt, or a reader who left `stream` early
                self._recover()
                raise
            self._check(timeout)
        finally:
            self._busy = False

    def _until_done(self, deadline: float) -> Iterator[tuple[int, dict]]:
        """Yield (rank, message) until every rank is done, one is dead, or the time is up; one that has failed
        leaves the others GRACE seconds."""
        import zmq

        while busy := [p for p in self._processes if not p.done]:
            poller = zmq.Poller()
            for p in busy:
                for socket in p.sockets():
                    poller.register(socket, zmq.POLLIN)
            poller.poll(50)
            for p in busy:
                for message in p.messages():
                    yield p.rank, message
            if any(p.error for p in self._processes):
                deadline = min(deadline, time.monotonic() + GRACE)
            if time.monotonic() > deadline or any(p.death() for p in busy):
                return

    def _check(self, timeout: float) -> None:
        """Raise what went wrong with the last request, once the ranks are usable again."""
        failed = {p.rank: p.error for p in self._processes if p.error}
        dead = [f"rank {p.rank} {p.death()}" for p in self._processes if p.death()]
        busy = [p for p in self._processes if not p.done and not p.death()]
        if not (failed or dead or busy):
            return
        doing = [f"rank {p.rank} was {p.where()}" for p in busy]
        late = [f"no answer after {timeout:g} s"] if not (failed or dead) else []
        after = ". ".join([*late, *dead, *doing, *self._recover()])
        if failed:
            raise CellError(failed, after)
        raise RankError(after)

    def _recover(self) -> list[str]:
        """Interrupt what still runs, and keep these ranks if all are in step. Otherwise replace them, and say so."""
        if not self._all_done(0.1):
            for p in self._processes:
                if not p.done:
                    p.interrupt()
        if self._all_done(GRACE) and self._in_step():
            return []
        self._replace()
        return ["The ranks were out of step: fresh ones replace them, and what was defined on the old ones is gone"]

    def _all_done(self, seconds: float) -> bool:
        for _ in self._until_done(time.monotonic() + seconds):
            pass
        return all(p.done for p in self._processes)

    def _in_step(self) -> bool:
        """Whether a collective completes now on every rank: one may still owe, or be owed, an earlier one."""
        for p in self._processes:
            p.submit("_rank.check_in_step()", silent=True)
        return self._all_done(IN_STEP) and not any(p.error for p in self._processes)


def _end(processes: list[RankProcess], folder: Path) -> None:
    for p in processes:
        p.kill()
    processes.clear()
    shutil.rmtree(folder, ignore_errors=True)


def _register_magic(ranks: Ranks) -> None:
    """%%ranks runs a cell on the ranks started last."""
    from IPython import get_ipython

    if shell := get_ipython():
        shell.register_magic_function(lambda line, cell: ranks.run(cell), "cell", "ranks")

"""Live ranks under a notebook: one IPython kernel a rank, joined in a process group.

    ranks = Ranks(2)                  NCCL where there are two GPUs, otherwise gloo; it says which
    ranks.run("x = torch.ones(3)")    on all ranks; output is shown by rank
    ranks.get("x.sum()")              [3.0, 3.0]: values by rank
    for row in ranks.stream(code):    rows that the code emits, as they come
    ranks.where()                     what each rank does now
    %%ranks                           the same as `run`, for a whole cell
    %%rank 1                          on one rank alone

On a rank the names `world`, `torch` and `emit` are there. The ranks end with this process, however it ends, and what
they have put into their temporary folder (`tempfile`, TMPDIR) goes with them.
Ranks agree on each collective before data moves (`parallel/board.py`): a deadlock or a mismatch is an error that names
the difference, at once. Whatever a cell does, the next one meets ranks that work: the same ones if they are in step,
otherwise fresh ones.
"""
from __future__ import annotations

import base64
import json
import pickle
import threading
import weakref
from collections.abc import Iterator

from ..errors import UserError
from ..parallel.launch import check_memory, gpu_count
from ..parallel.torchrun import share_gpu as share_gpu_is_set
from .conversation import Conversation
from .crew import Crew, check_alive, uninterrupted
from .forker import Forker
from .magics import register
from .rank_kernel import ROW, VALUE
from .show import Show


class Ranks:
    """N live ranks. Usable in a `with` block; otherwise `close()`, or the end of this process, ends them.

    device         "cuda", "cpu", or None: GPUs if there are enough for every rank to have its own
    share_gpu      let ranks share GPUs (correctness only, no timing means anything); None: TPGPT2_SHARE_GPU=1 says so
    group_timeout  seconds that a rank waits in a collective for one that still computes
    check          agree on each collective before data moves; False: none of it, for timing
    """

    def __init__(self, size: int = 2, device: str | None = None, share_gpu: bool | None = None,
                 group_timeout: float = 300.0, check: bool = True):
        if size < 1:
            raise UserError(f"Ranks({size}): at least one rank")
        check_memory(size, f"Ranks({size})")
        if device not in (None, "cpu", "cuda"):
            raise UserError(f"Ranks(device={device!r}): \"cpu\", \"cuda\" or None")
        self.share_gpu = share_gpu_is_set() if share_gpu is None else share_gpu
        self._forker = Forker.take()  # it imports torch, while this process looks for GPUs
        self._give_back = weakref.finalize(self, self._forker.give_back)
        gpus = gpu_count()
        enough = gpus >= (1 if self.share_gpu else size)
        if device == "cuda" and not enough:
            self._give_back()
            raise UserError(f"Ranks({size}, device=\"cuda\") needs {size} GPUs, this machine has {gpus}: use "
                            "device=\"cpu\"" + (", or share_gpu=True to check that the code is right" if gpus else ""))
        self.size, self.device = size, device or ("cuda" if enough else "cpu")
        self.group_timeout, self.check = group_timeout, check
        self._crew: Crew | None = None
        self._reserve: Crew | None = None  # the next one, complete: once one was lost, another may be
        self._keeps_reserve = self.device == "cuda"  # where contexts and NCCL take seconds
        self._turn = threading.Lock()  # one request at a time
        self._closed = self._lost = self._unsure = False  # unsure: an interrupt came where it could not be put right
        try:
            self._crew = self._new_crew()
            self._crew.join()
            self._about = self._crew.about
        except BaseException:
            self.close()
            raise
        print(self.describe())
        register(self)

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

    def run(self, code: str, timeout: float = 300.0, rank: int | None = None) -> None:
        """Run code on every rank, or on one alone, and show its output by rank.

        timeout  seconds until it is given up
        Raises CellError if a rank raised, RankError if one died, waits for ever, or the time is up.
        """
        if rank is not None and rank not in range(self.size):
            raise UserError(f"rank {rank}: these ranks are 0 to {self.size - 1}")
        show = Show(self.size)
        try:
            for of, message in self._converse(code, timeout, None if rank is None else (rank,)):
                show.message(of, message)
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
        """Run code on every rank; yield each row that it emits, with its "rank", as it comes. A slow reader loses none.
        """
        show = Show(self.size)
        try:
            for rank, message in self._converse(code, timeout):
                if ROW in message.get("data", {}):
                    yield {**json.loads(message["data"][ROW]), "rank": rank}
                else:
                    show.message(rank, message)
        finally:
            show.close()

    def where(self) -> Where:
        """What each rank does now, whether it can answer or not. From another thread while a cell runs."""
        self._check_open()
        return Where(self._crew.where())

    def close(self) -> None:
        """End the ranks. What is defined on them is gone. From any thread, at any time, more than once."""
        self._closed = True
        with uninterrupted():
            if self._crew is not None:
                self._crew.over.detach()
                self._crew.end()
                if self._turn.acquire(blocking=False):  # otherwise whoever talks to them hangs up
                    try:
                        self._hang_up()
                    finally:
                        self._turn.release()
            self._give_back()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _new_crew(self) -> Crew:
        """Start the processes; `_converse` waits for them."""
        if not self._forker.alive:
            self._give_back()
            self._forker = Forker.take()
            self._give_back = weakref.finalize(self, self._forker.give_back)
        crew = Crew(self._forker, self.size, self.device, self.group_timeout, self.share_gpu, self.check)
        crew.over = weakref.finalize(self, crew.finish)
        return crew

    def _replace(self) -> None:
        """Fresh ranks: those in reserve, otherwise new ones, which form their group while the reader reads."""
        self._crew.over()
        if self._reserve is not None and (self._reserve.dead() or self._reserve.homeless):
            self._reserve.over()
            self._reserve = None
        if not self._closed:
            self._crew, self._reserve = self._reserve or self._new_crew(), None
            self._lost, self._unsure = True, False

    def _prepare(self) -> None:
        """Let the reserve form its group; nothing waits for it."""
        if self._keeps_reserve and self._reserve is None and not self._closed:
            self._reserve = self._new_crew()

    def _hang_up(self) -> None:
        """Only from the thread that has the turn."""
        self._crew.hang_up()
        if self._reserve is not None:
            self._reserve.over()

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("these ranks are closed: start new ones with Ranks(...)")

    def _converse(self, code: str, timeout: float, only: tuple[int, ...] | None = None) -> Iterator[tuple[int, dict]]:
        """Run code on the ranks; yield (rank, output message) as they come. Afterwards they are ready for the next."""
        self._check_open()
        if not self._turn.acquire(blocking=False):
            raise UserError("the ranks are still busy with a cell or a stream: let it end first")
        try:
            with uninterrupted():
                if self._unsure:
                    self._replace()
                try:
                    check_alive(self._crew)
                except BaseException as e:
                    self._replace()
                    e.args = (f"{e}. Fresh ranks replace them, and what was defined on the old ones is gone",)
                    raise
            try:
                self._crew.join()
                self._crew.get_ready()
            except Exception:
                self._unsure = True
                raise
            self._unsure = True
            yield from Conversation(self).run(code, timeout, only)
            self._unsure = False
            if self._lost:
                self._prepare()
        finally:
            if self._closed:
                self._hang_up()
            self._turn.release()


class Where(dict):
    """{rank: what it does}, shown a line a rank."""

    def __repr__(self) -> str:
        return "\n".join(f"rank {rank} {what}" for rank, what in self.items())

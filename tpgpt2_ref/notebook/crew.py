"""One generation of rank processes: their folder, their board, what they all do. `Ranks` replaces a crew by another."""
from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

from ..errors import RankError
from ..parallel.board import ORDER, Board, Page
from ..parallel.posts import Phase, State, after, circle, trouble
from ..parallel.private import PrivateFolder
from ..parallel.recorder import ask
from ..parallel.times import mark
from ..parallel.torchrun import rank_env
from .forker import Forker
from .process import RankProcess

START = 60.0  # seconds that ranks may take to start


class Crew:
    """`size` ranks that start to form their group at once; `join` waits for them."""

    def __init__(self, forker: Forker, size: int, device: str, group_timeout: float, share_gpu: bool, check: bool):
        self.forker = forker
        self.folder, self.processes, self.joined = PrivateFolder(), [], False
        self.cell, self.absent = 1, ()
        self.over = self.finish  # what ends it, once; its owner's finalizer takes the place
        try:
            self.pages = []
            if check:
                Board.create(self.folder.path, size)
                self.pages = [Page(self.folder.path, rank) for rank in range(size)]
            env = {"TPGPT2_SHARE_GPU": str(int(share_gpu))}
            for rank in range(size):
                self.processes.append(RankProcess(rank, self.folder.path, self.forker,
                                                  {**rank_env(rank, size, self.folder.path), **env}, device))
            mark("ranks asked for")
            for p in self.processes:
                p.submit_two("from tpgpt2_ref.notebook.rank_kernel import RankSide\n"
                             f"RankSide({device!r}, {group_timeout})\ndel RankSide",
                             "_rank.about()", "_rank.learn_to_sum()")
        except BaseException:
            self.end()
            raise

    def join(self) -> None:
        """Wait until the ranks have formed their group. Can be interrupted, and called again, as `get_ready` can."""
        deadline = time.monotonic() + START
        if not self.joined:
            for p in self.processes:
                p.wait_for_kernel(deadline)
            mark("ranks joined")
        self.joined = True

    @property
    def about(self) -> list[tuple[str, str]]:
        """(backend, device) by rank, for people."""
        return [p.about for p in self.processes]

    def get_ready(self) -> None:
        """Wait until they can take a cell."""
        deadline = time.monotonic() + START
        for p in self.processes:
            p.wait_for_second(deadline)

    def submit(self, code: str, only: tuple[int, ...] | None = None, silent: bool = False) -> None:
        """Send a cell to all ranks, or to some; the others don't run it."""
        everyone = tuple(range(len(self.processes)))
        self.absent = tuple(r for r in everyone if only is not None and r not in only)
        self.cell += 1
        if self.pages:
            who = sum(1 << r for r in everyone if r not in self.absent)
            (self.folder.path / "order.board").write_bytes(ORDER.pack(self.cell, who))
        for p in self.running():
            p.submit(code, silent)

    def running(self) -> list[RankProcess]:
        """The ranks that run the last cell, done or not."""
        return [p for p in self.processes if p.rank not in self.absent]

    def busy(self) -> list[RankProcess]:
        return [p for p in self.running() if not p.done]

    def dead(self) -> dict[int, str]:
        """{rank: how it died}, of those that have."""
        return {p.rank: f"rank {p.rank} {p.death()}" for p in self.processes if p.death()}

    @property
    def homeless(self) -> bool:
        """Whether somebody removed the folder: ranks can't form new groups then."""
        return not self.folder.path.exists()

    # What the board says

    def states(self) -> dict[int, State]:
        states = {rank: page.read() for rank, page in enumerate(self.pages)}
        ended = [p.rank for p in self.running() if p.done and p.rank in states]
        return {**states, **{r: replace(states[r], phase=max(states[r].phase, Phase.ENDED)) for r in ended}}

    def trouble(self) -> str | None:
        """What is wrong with the collectives that this cell has run, or can never finish."""
        return trouble({rank: s.moved for rank, s in self.states().items()}, self.cell, absent=self.absent)

    def recorded_trouble(self) -> str | None:
        """The same of what PyTorch's flight recorder knows: collectives that went past the board. It takes a moment."""
        states = {rank: s for rank, s in self.states().items() if s.cell == self.cell}
        posts = ask(self.folder.path, states)
        if len(posts) < len(states):
            return None
        return trouble({rank: replace(s, posts=posts[rank], waiting=None) for rank, s in states.items()}, self.cell,
                       absent=self.absent)

    def circle(self) -> str | None:
        return circle(self.states(), self.cell, self.absent) if self.pages else None

    def left(self) -> str | None:
        """Which rank destroyed its process group."""
        gone = [rank for rank, s in self.states().items() if s.phase == Phase.BROKEN]
        return f"rank {gone[0]} left its group" if gone else None

    def where(self) -> dict[int, str]:
        """What each rank does now, in words."""
        states, said = self.states(), {}
        for p in self.processes:
            state = states.get(p.rank, State(self.cell, Phase.RUNNING if not p.done else Phase.ENDED))
            last = state.moved.last() if state.cell == self.cell else None
            past = f" after {last.name}" if last else ""
            if p.death():
                said[p.rank] = p.death()
            elif p.rank in self.absent or p.done:
                said[p.rank] = "idle" + (f"; its last cell ended {after(last)}" if last else "")
            elif state.waiting:
                said[p.rank] = f"waits in {state.waiting}"
            else:
                line = p.line() or "no line of the cell"
                said[p.rank] = f"is at {line}{past}" if not state.ended else f"ends its cell{past}"
        return said

    # The end

    def end(self) -> None:
        """Kill them and remove their folder. From any thread, and more than once."""
        for p in self.processes:
            p.kill()
        for p in self.processes:
            p.bury()
        self.folder.remove()
        self.forker.forget(self.folder.path)

    def hang_up(self) -> None:
        """Close the channels; only from the thread that talks to them."""
        for p in self.processes:
            p.hang_up()

    def finish(self) -> None:
        self.end()
        self.hang_up()


@contextmanager
def uninterrupted():
    """Interrupts wait until the block has ended: any number of them can't stop a recovery halfway."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


def check_alive(crew: Crew) -> None:
    """Raise RankError if the crew can't take another cell."""
    if dead := crew.dead():
        raise RankError(f"{'; '.join(dead.values())} since the last cell")
    if crew.homeless:
        raise RankError(f"the ranks' folder {crew.folder.path} was removed, as a cleaner of temporary files does")

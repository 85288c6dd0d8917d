"""One cell on the ranks, from its start to ranks that are ready for the next one, whatever it did."""
from __future__ import annotations

import time
from collections.abc import Iterator

from ..errors import RankError, UserError
from ..parallel.posts import Phase
from .crew import uninterrupted
from .show import CellError

GRACE = 1.0  # seconds that the others get to end by themselves once a rank has failed, and again once interrupted
CERTAIN = 1.0  # seconds that a deadlock is looked at before it is called one: the ranks mostly say it themselves
LOOK = 0.2  # seconds between two looks at the board
RECORDER = 0.5  # seconds until the flight recorders are looked at, and again when a rank has ended its cell. A look
SELDOM = 2.0  # costs a rank a moment, so the pauses double, up to this once one has ended
SPEECHLESS = 5.0  # seconds after which a rank that has ended its cell should have answered
IN_STEP = 5.0  # seconds for one small collective, on a machine that may be busy
FRESH = "Fresh ranks replace the old ones, and what was defined on those is gone"


class Conversation:
    """`run` it once."""

    def __init__(self, ranks):
        self.ranks, self.crew = ranks, ranks._crew
        self.found: str | None = None  # what the board tells about a cell that will never end
        self.lost = False  # and that it has begun what a rank will never join: no interrupt puts that right
        self.seen, self.seen_at, self.looked_at = None, 0.0, 0.0
        self.recorded, self.recorded_at, self.pause, self.ended = None, time.monotonic(), RECORDER, False

    def run(self, code: str, timeout: float, only: tuple[int, ...] | None) -> Iterator[tuple[int, dict]]:
        """Yield (rank, message); then raise what went wrong, once the ranks are usable again."""
        try:
            self.crew.submit(code, only)
            yield from self._until_done(timeout)
        except BaseException:  # an interrupt, or a reader who left `stream` early
            if not self.ranks._closed:
                with uninterrupted():
                    self._recover()
            raise
        with uninterrupted():
            self._check(timeout)

    def _until_done(self, seconds: float, watch: bool = True) -> Iterator[tuple[int, dict]]:
        """Yield (rank, message) until every rank is done, one is dead, waits for ever, or the time is up.

        One that has failed leaves the others GRACE seconds. The time that the reader takes for a message is not theirs.
        """
        import zmq

        deadline = time.monotonic() + seconds
        failed = False
        while (busy := self.crew.busy()) and not self.ranks._closed:
            poller = zmq.Poller()
            for p in busy:
                for socket in p.sockets():
                    poller.register(socket, zmq.POLLIN)
            poller.poll(50)
            for p in busy:
                for message in p.messages():
                    begin = time.monotonic()
                    yield p.rank, message
                    deadline += time.monotonic() - begin
            if not failed and any(p.error for p in self.crew.running()):
                failed, deadline = True, min(deadline, time.monotonic() + GRACE)
            if time.monotonic() > deadline or self.crew.dead() or watch and self._hopeless(busy):
                return

    def _hopeless(self, busy) -> bool:
        """Whether the board says that this cell never ends; `found` is why."""
        now = time.monotonic()
        if now - self.looked_at < LOOK:
            return False
        self.looked_at = now
        if self.crew.homeless:
            self.found = f"the ranks' folder {self.crew.folder.path} was removed"
            return True
        states = self.crew.states()
        trouble = self.crew.trouble()
        seen = trouble or self.crew.circle()
        if silent := [p.rank for p in busy if p.rank in states and states[p.rank].cell == self.crew.cell
                      and states[p.rank].phase >= Phase.ENDED and p.asleep(SPEECHLESS)]:
            self.found = f"rank {silent[0]} has ended its cell and does not answer"
            return True
        recorded = None if seen else self._recorded(states)
        seen = seen or recorded
        if seen is None or seen != self.seen:
            self.seen, self.seen_at = seen, now
        elif now - self.seen_at > CERTAIN:
            self.found = seen
            self.lost = bool(recorded or trouble and not any(s.waiting for s in states.values()))
        return self.found is not None

    def _recorded(self, states) -> str | None:
        """What the flight recorders tell, looked up now and then."""
        if not self.ended and any(s.cell == self.crew.cell and s.ended for s in states.values()):
            self.ended, self.pause = True, RECORDER
        if states and time.monotonic() - self.recorded_at > self.pause:
            self.recorded = self.crew.recorded_trouble()
            self.recorded_at, self.pause = time.monotonic(), min(2 * self.pause, SELDOM if self.ended else 60.0)
        return self.recorded

    def _check(self, timeout: float) -> None:
        """Raise what went wrong, once the ranks are usable again."""
        crew = self.crew
        if self.ranks._closed:
            raise UserError("these ranks were closed while they ran a cell")
        failed = {p.rank: p.error for p in crew.running() if p.error}
        dead, busy = crew.dead(), crew.busy()
        said = [e["evalue"] for e in failed.values() if e["ename"] == "OutOfStep"]
        found = self.found or None if said else self.found or crew.trouble() or crew.left()
        if not (failed or dead or busy or found):
            return
        late = [f"no answer after {timeout:g} s"] if not (failed or dead or found) else []
        where = crew.where() if busy and not found else {}
        doing = [f"rank {p.rank} {where[p.rank]}" for p in busy if p.rank in where and p.rank not in dead]
        after = ". ".join([*late, *dead.values(), *([found] if found else []), *doing, *self._recover()])
        if failed:
            raise CellError(failed, after)
        raise RankError(after)

    def _recover(self) -> list[str]:
        """Interrupt what still runs, and keep these ranks if all are in step. Otherwise replace them, and say so."""
        self.ranks._unsure = True
        if not (self.lost or self._all_done(0.1)):
            self.ranks._prepare()
            for p in self.crew.busy():
                p.interrupt()
        if self.lost or not (self._all_done(GRACE) and self._in_step()):
            self.ranks._replace()
        self.ranks._unsure = False
        return [] if self.ranks._crew is self.crew else [FRESH]

    def _all_done(self, seconds: float) -> bool:
        for _ in self._until_done(seconds, watch=False):
            pass
        return not self.crew.busy()

    def _in_step(self) -> bool:
        """Whether a collective completes now on every rank: one may still owe, or be owed, an earlier one."""
        if self.crew.trouble() or self.crew.left() or self.crew.dead() or self.crew.homeless:
            return False
        self.crew.submit("_rank.check_in_step()", silent=True)
        return self._all_done(IN_STEP) and not any(p.error for p in self.crew.running()) and not self.crew.left()

"""The board: each rank posts what collectives it runs, and anyone can read it without asking that rank.

    board.begin(cell)                    a new run: numbers start at 1 again
    board.post("all_reduce", ...)        before data moves; waits until the others have posted the same
    board.end()                          no more posts in this run

One small memory-mapped file a rank, in a folder that only this user can enter: a rank that is blocked in a collective
can't answer, but its page can be read. So two things are found that a hanging group never tells: that the ranks are
about to run different collectives (nobody moves data then, and everybody gets the error), and that one has left.
Slow is not gone: a rank that still computes is waited for. Imports no torch.
"""
from __future__ import annotations

import json
import mmap
import struct
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from .posts import SLOTS, OutOfStep, Phase, Post, State, trouble

HEADER = 64  # bytes, of which the first eight are one number, so that it is never half written: see `Header`
SLOT = 384  # bytes of a post
ORDER = struct.Struct("<QQ")  # what the notebook tells all ranks: the cell's number, which ranks run it (bits)
EVERYBODY = 2**64 - 1


class Header(NamedTuple):
    """What changes all the time, in 64 bits: cell 24, phase 3, whether the last post waits 1, refusals 8, posts 28."""

    cell: int
    phase: int
    waits: bool
    refusals: int  # posts that were changed afterwards
    count: int  # posts in this cell

    def word(self) -> int:
        return ((self.cell % 2**24) << 40 | self.phase << 37 | self.waits << 36 | (self.refusals % 2**8) << 28
                | self.count)

    @classmethod
    def of(cls, word: int) -> Header:
        return cls(word >> 40, word >> 37 & 7, bool(word >> 36 & 1), word >> 28 & 255, word % 2**28)


class Page:
    """One rank's part of the board. The rank itself writes it, others read it; what they have read once they keep."""

    def __init__(self, folder: Path, rank: int, write: bool = False):
        with (folder / f"rank{rank}.board").open("r+b" if write else "rb") as file:
            access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
            self.memory = mmap.mmap(file.fileno(), HEADER + SLOTS * SLOT, access=access)
        self.words = memoryview(self.memory).cast("Q")
        self.read_of, self.posts = (0, 0), {}  # (cell, refusals), {i: post i}

    def header(self) -> Header:
        return Header.of(self.words[0])

    def read(self) -> State:
        """All of it. A page that is written meanwhile is read again, a few times."""
        for _ in range(5):
            before = self.header()
            posts = [self.post(i, before) for i in range(max(0, before.count - SLOTS), before.count)]
            if None not in posts and self.header()[::4] == before[::4]:
                break
        waiting = posts[-1] if before.waits and posts else None
        return State(before.cell, Phase(before.phase), tuple(p for p in posts if p), waiting)

    def find(self, channel: str, number: int) -> Post | None:
        """One post of the current cell, if it is here yet."""
        header = self.header()
        for i in range(header.count - 1, max(0, header.count - SLOTS) - 1, -1):
            post = self.post(i, header)
            if post and post.channel == channel and post.number <= number:
                return post if post.number == number else None
        return None

    def post(self, i: int, header: Header) -> Post | None:
        """Post i of the header's cell, None while it is half written."""
        if self.read_of != (header.cell, header.refusals):
            self.read_of, self.posts = (header.cell, header.refusals), {}
        if post := self.posts.get(i):
            return post
        at = HEADER + i % SLOTS * SLOT
        try:
            *fields, members = json.loads(self.memory[at:at + SLOT].rstrip(b"\0"))
        except ValueError:
            return None
        post, now = Post(*fields, members=tuple(members)), self.header()
        if now[::3] == header[::3] and now.count < i + SLOTS:  # of this cell, not refused, not written over meanwhile
            self.posts[i] = post
            self.posts.pop(i - SLOTS, None)
        return post

    def write_header(self, header: Header) -> None:
        self.words[0] = header.word()

    def write_post(self, i: int, post: Post) -> None:
        at = HEADER + i % SLOTS * SLOT
        self.memory[at:at + SLOT] = json.dumps([*post.__dict__.values()]).encode().ljust(SLOT, b"\0")


@dataclass
class Board:
    """One rank's hand on the board. `patience`: seconds that it waits for a rank that still computes."""

    folder: Path
    rank: int
    size: int
    patience: float = 300.0
    unit: str = "its run"  # in a notebook "its cell"
    together: bool = False  # in a notebook: ranks leave a group together, or not at all
    cell: int = 0
    phase: Phase = Phase.IDLE
    refusals: int = 0
    count: int = 0
    waits: bool = False
    off: bool = False
    channels: dict[str, tuple[int, int]] = field(default_factory=dict)  # (number, chain) of the last post
    lock: threading.Lock = field(default_factory=threading.Lock)
    here: threading.local = field(default_factory=threading.local)
    left_behind: weakref.WeakSet = field(default_factory=weakref.WeakSet)  # threads of earlier cells

    def __post_init__(self):
        self.pages = [Page(self.folder, rank, write=rank == self.rank) for rank in range(self.size)]

    @staticmethod
    def create(folder: Path, size: int) -> None:
        """Empty pages for `size` ranks; before any of them starts."""
        for rank in range(size):
            (folder / f"rank{rank}.board").write_bytes(bytes(HEADER + SLOTS * SLOT))
        (folder / "order.board").write_bytes(ORDER.pack(1, EVERYBODY))

    def order(self) -> tuple[int, int]:
        """(cell, who runs it) as the notebook says."""
        return ORDER.unpack((self.folder / "order.board").read_bytes())

    def begin(self, cell: int) -> None:
        with self.lock:
            self.cell, self.phase, self.waits, self.channels = cell, Phase.RUNNING, False, {}
            self.count = self.refusals = 0
            self.left_behind = weakref.WeakSet(t for t in threading.enumerate() if t is not threading.current_thread())
            self._header()

    def end(self, phase: Phase = Phase.ENDED) -> None:
        with self.lock:
            self.phase = phase
            self._header()

    @contextmanager
    def quiet(self):
        """What this thread calls inside is already posted, or is not to be."""
        before, self.here.quiet = getattr(self.here, "quiet", False), True
        try:
            yield
        finally:
            self.here.quiet = before

    @property
    def silent(self) -> bool:
        return self.off or getattr(self.here, "quiet", False)

    def post(self, op: str, dtype: str = "", shape: str = "", detail: str = "", layer: str = "", line: int = 0,
             channel: str = "", members: tuple[int, ...] = (), wait: bool = True) -> None:
        """Announce a collective, and with `wait` return when all its members have announced the same.

        Raises OutOfStep, on every rank that waits, before data moves.
        """
        if threading.current_thread() in self.left_behind or self.phase != Phase.RUNNING:
            raise OutOfStep(f"{op} in a thread whose cell has ended: a thread that outlives its cell may not call "
                            "collectives")
        with self.lock:
            number, before = self.channels.get(channel, (0, 0))
            post = Post(number + 1, op, dtype[:24], shape[:64], detail[:24], layer[:64], line, 0, channel[:32],
                        members=members)
            chain = crc32(repr((*post.signature[:1], dtype, shape, detail)).encode(), before)
            post = replace(post, chain=chain)
            self.channels[channel] = post.number, chain
            slot = self.count
            self.pages[self.rank].write_post(slot, post)
            self.count += 1
            self.waits = wait
            self._header()
        try:
            self._agree(post, wait)
        except BaseException:
            with self.lock:
                self.pages[self.rank].write_post(slot, replace(post, refused=True))
                self.refusals += 1
                self._header()
            if self.channels.get(channel) == (post.number, chain):
                self.channels[channel] = post.number, before
            raise
        finally:
            with self.lock:
                self.waits = False
                self._header()

    def leave(self, channel: str = "", members: tuple[int, ...] = ()) -> None:
        """Before this rank destroys a group: announce that, as a collective of the group, where it has to be one."""
        if self.together and not self.silent and self.phase == Phase.RUNNING:
            self.post("destroy_process_group", line=cell_line(), channel=channel, members=members)

    def _agree(self, post: Post, wait: bool) -> None:
        cell, begin, tries = self.cell, time.monotonic(), 0
        left = [r for r in (post.members or range(self.size)) if r != self.rank]
        while left := [r for r in left if not self._answered(r, post)]:
            if not wait:
                return
            if self.cell != cell or self.phase != Phase.RUNNING:
                raise OutOfStep(f"{post} in a thread whose cell has ended")
            if (late := time.monotonic() - begin) > self.patience:
                raise OutOfStep(f"rank {self.rank} waits in {post}; rank {left[0]} did not come within {late:.0f} s")
            tries += 1
            time.sleep(0 if tries < 200 else 5e-5 if tries < 2000 else 1e-3)

    def _answered(self, rank: int, post: Post) -> bool:
        """Whether that rank has announced the same; raises if it has announced another, or never will."""
        header = self.pages[rank].header()
        if header.cell != self.cell:
            if self.order()[1] >> rank & 1:
                return False
            raise OutOfStep(f"rank {self.rank} waits in {post}; rank {rank} does not run this cell")
        theirs = self.pages[rank].find(post.channel, post.number) if header.count else None
        if theirs is None and post.op == "send" and self.pages[rank].read().takes_any:
            return True
        if theirs is None and header.phase < Phase.ENDING:
            state = self.pages[rank].read() if header.count >= SLOTS else State()
            last = state.last(post.channel)
            return last is not None and last.number > post.number  # so far ahead that its page has it no more
        if theirs is None or theirs.chain != post.chain or theirs.refused:
            time.sleep(0.1)  # the others are about to post too, and all shall say the same
            raise OutOfStep(self._difference(post.number) or
                            f"{post}: the ranks differ in an earlier collective, or rank {rank} refused this one")
        return True

    def _difference(self, number: int) -> str | None:
        """What is wrong now; a difference that was refused earlier, and caught, is past."""
        _, who = self.order()
        states = {rank: page.read() for rank, page in enumerate(self.pages)}
        states = {rank: replace(s, posts=tuple(p for p in s.posts if not p.refused or p.number >= number))
                  for rank, s in states.items()}
        return trouble(states, self.cell, self.unit, tuple(r for r in range(self.size) if not who >> r & 1))

    def _header(self) -> None:
        self.pages[self.rank].write_header(Header(self.cell, self.phase, self.waits, self.refusals,
                                                   self.count))


def cell_line() -> int:
    """The line of the notebook's cell that led here, 0 if none did."""
    frame = sys._getframe(1)
    while frame is not None:
        if "ipykernel_" in frame.f_code.co_filename:
            return frame.f_lineno
        frame = frame.f_back
    return 0

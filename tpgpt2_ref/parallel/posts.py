"""What ranks posted on the board (`board.py`), and what is wrong with it: pure functions of what the pages say.

    trouble(states, cell)    "rank 0 waits in all_reduce #3, float32 (4,), line 2; rank 1 ended its cell after #2"
                             "#3 is all_reduce of (4,) on rank 0 and of (5,) on rank 1"
    circle(states, cell)     each rank waits for another: different groups, in different orders
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from ..errors import RankError

SLOTS = 256  # posts that a page holds: so far may a rank run ahead with asynchronous collectives


class OutOfStep(RankError):
    """The ranks don't run the same collectives: one runs another, or has left."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]  # what IPython shows: the message names the cell's line


class Phase(IntEnum):
    """What a rank does with its cell."""

    IDLE, RUNNING, ENDING, ENDED, BROKEN = range(5)  # ENDING: no more posts, GPU work still runs; BROKEN: no group


@dataclass(frozen=True)
class Post:
    """One collective, as one rank announced it."""

    number: int  # in its channel, from 1
    op: str
    dtype: str
    shape: str
    detail: str = ""  # which sum, whose broadcast
    layer: str = ""
    line: int = 0  # of the cell, 0 if there is none
    chain: int = 0  # of this and all earlier posts of the channel
    channel: str = ""  # "" is the whole group
    refused: bool = False  # no data moved
    members: tuple[int, ...] = ()  # () are all ranks

    @property
    def signature(self) -> tuple[str, ...]:
        """What all members must announce alike. A send and its recv are one message."""
        return "message" if self.op in ("send", "recv") else self.op, self.dtype, self.shape, self.detail

    @property
    def name(self) -> str:
        of = f" of {self.channel}" if self.channel else ""
        return f"{self.op} #{self.number}{of}"

    def __str__(self) -> str:
        what = " ".join(filter(None, [self.dtype, self.shape]))
        of = f"of {self.layer}" if self.layer else ""
        return ", ".join(filter(None, [self.name, what, of, f"line {self.line}" if self.line else ""]))


@dataclass(frozen=True)
class State:
    """What a page said at one moment: the cell, what the rank does with it, and its posts (the last SLOTS)."""

    cell: int = 0
    phase: Phase = Phase.IDLE
    posts: tuple[Post, ...] = ()
    waiting: Post | None = None

    @property
    def ended(self) -> bool:
        return self.phase >= Phase.ENDING

    @property
    def moved(self) -> State:
        """Without the posts that were refused: what a group has really run, or is about to."""
        return replace(self, posts=tuple(p for p in self.posts if not p.refused))

    @property
    def takes_any(self) -> bool:
        """Whether the rank has called a recv from any rank: nobody knows then which send it takes."""
        return any(p.op == "recv" and len(p.members) == 1 for p in self.posts)

    def last(self, channel: str = "") -> Post | None:
        return next((p for p in reversed(self.posts) if p.channel == channel), None)

    def lacks(self, number: int) -> bool:
        """Whether a post of that number, which is not here, will never be: the rank has ended, or is further on."""
        return len(self.posts) < SLOTS and (self.ended or any(p.number > number for p in self.posts))

    def find(self, channel: str, number: int) -> Post | None:
        return next((p for p in reversed(self.posts) if p.channel == channel and p.number == number), None)


def trouble(states: dict[int, State], cell: int, unit: str = "its cell", absent: tuple[int, ...] = ()) -> str | None:
    """What is wrong among the ranks of a cell, in words; None if nothing is, or nothing yet.

    absent  ranks that don't run this cell
    """
    here = {rank: s for rank, s in states.items() if s.cell == cell and rank not in absent}
    for channel in sorted({p.channel for s in here.values() for p in s.posts}):
        members = next(p.members for s in here.values() for p in s.posts if p.channel == channel) or tuple(states)
        if channel.find(" → ") > 0 and members[-1] in here and here[members[-1]].takes_any:
            continue
        last = {r: here[r].last(channel) for r in members if r in here}
        for number in range(1, max(p.number for p in last.values() if p) + 1):
            posts = {r: p for r in sorted(last) if (p := here[r].find(channel, number))}
            if len({p.signature for p in posts.values()}) > 1:
                return difference(posts)
            gone = [r for r in members if r not in posts and (r in absent or r in here and here[r].lacks(number))]
            if posts and gone:
                waiter = next((r for r in posts if here[r].waiting == posts[r]), min(posts))
                does = "waits in" if here[waiter].waiting == posts[waiter] else "called"
                return f"rank {waiter} {does} {posts[waiter]}; " + "; ".join(
                    f"rank {r} does not run this cell" if r in absent else
                    f"rank {r} ended {unit} {after(last[r])}" if here[r].ended else
                    f"rank {r} refused #{number}" for r in gone)
    return None


def circle(states: dict[int, State], cell: int, absent: tuple[int, ...] = ()) -> str | None:
    """That all ranks of a cell wait, and each for another; None while one of them may still go on."""
    here = [(rank, s) for rank, s in states.items() if rank not in absent]
    running = [(rank, s) for rank, s in here if not s.ended]
    if not running or any(s.cell != cell or s.waiting is None for _, s in running):
        return None
    return "; ".join(f"rank {rank} waits in {s.waiting}" for rank, s in running)


def after(last: Post | None) -> str:
    return f"after #{last.number}" if last else "without any"


def difference(posts: dict[int, Post]) -> str:
    """ "#3 is all_reduce of (4,) on rank 0 and of (5,) on rank 1", naming what differs and nothing else."""
    first = next(iter(posts.values()))
    differ = [len({p.signature[i] for p in posts.values()}) > 1 for i in range(4)]
    groups: dict[tuple, list[int]] = {}
    for rank, post in posts.items():
        groups.setdefault((post.signature, post.line), []).append(rank)
    parts = []
    for (signature, line), ranks in groups.items():
        op, dtype, shape, detail = signature
        name = op if differ[0] or not parts else ""
        shown = [dtype * (differ[0] or differ[1]), shape * (differ[0] or differ[2] or differ[1] and not shape)]
        what = " ".join(filter(None, [*shown, detail * differ[3]]))
        where = f"on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
        parts.append(" ".join(filter(None, [name, f"of {what}" if what else "", where])) +
                     (f" (line {line})" if line else ""))
    of = f" of {first.channel}" if first.channel else ""
    return f"#{first.number}{of} is {' and '.join(parts)}"

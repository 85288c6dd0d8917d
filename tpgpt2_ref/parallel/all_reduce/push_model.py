"""The protocol of `push.py` as a small state machine, and a search through every order in which it can run.

    search(slots=2)                       Verdict(fault=None, ...): no order loses, mixes or waits for ever
    search(slots=1).fault                 "rank 0 overwrites ...": one slot is not enough
    search(slots=2, empty="next").fault   likewise: to empty a slot one call late takes a third slot

Each rank runs calls 0, 1, 2, ...; within a call every word has a thread of its own. A thread pushes its word to each
peer, then takes its peers' words and empties their places. Stores are slow: a push may land at any time after it was
issued, even after the kernel that issued it has ended; an emptying store lands before its kernel ends. `boundary`
False lets a rank's next kernel start before that, as programmatic dependent launch would without its wait.
"""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple


class State(NamedTuple):
    calls: tuple[int, ...]  # by rank: the call that it is in
    at: tuple[tuple[int, ...], ...]  # by rank, by word: the thread's next operation
    memory: tuple  # by place: the call whose word lies there, or None for EMPTY
    flying: frozenset  # stores under way: (rank that issued it, place, value it writes, value it should find)


@dataclass(frozen=True)
class Verdict:
    fault: str | None  # what can go wrong, or None
    states: int  # looked at
    path: tuple[str, ...] = ()  # how it went wrong, event by event: the shortest way


def search(ranks: int = 2, words: int = 2, calls: int = 3, slots: int = 2, empty: str = "at once",
           boundary: bool = True) -> Verdict:
    """Try every order of events of `calls` calls; stop at the fault that takes the fewest.

    empty  "at once": a thread empties a place when it has read it; "next": in the call after
    """
    places = {p: i for i, p in enumerate((rank, slot, sender, word) for rank in range(ranks)
              for slot in range(slots) for sender in range(ranks) for word in range(words))}

    def operations(rank: int, call: int) -> list[tuple[str, int]]:
        peers = [r for r in range(ranks) if r != rank]
        pushes, takes = [("push", p) for p in peers], [("take", p) for p in peers]
        if empty == "at once":
            return pushes + [op for p in peers for op in (("take", p), ("empty", p))]
        return ([("empty", p) for p in peers] if call else []) + pushes + takes

    def after(s: State):
        """(event, next state) for everything that can happen next, or (event, fault)."""
        for store in sorted(s.flying, key=str):
            rank, place, value, finds = store
            event = f"rank {rank}'s {'emptying' if value is None else f'push of call {value}'} lands on {place}"
            if s.memory[places[place]] != finds:
                yield event, f"rank {rank} overwrites a word of call {s.memory[places[place]]} that is still needed"
            else:
                memory = list(s.memory)
                memory[places[place]] = value
                yield event, s._replace(memory=tuple(memory), flying=s.flying - {store})
        for rank, call in enumerate(s.calls):
            if call == calls:
                continue
            todo = operations(rank, call)
            if all(at == len(todo) for at in s.at[rank]):
                if not boundary or not any(f[0] == rank and f[2] is None for f in s.flying):
                    yield f"rank {rank} ends call {call}", s._replace(
                        calls=put(s.calls, rank, call + 1), at=put(s.at, rank, (0,) * words))
                continue
            for word, at in enumerate(s.at[rank]):
                if at == len(todo):
                    continue
                op, peer = todo[at]
                step = s._replace(at=put(s.at, rank, put(s.at[rank], word, at + 1)))
                event = f"rank {rank}, call {call}, word {word}: {op} {peer}"
                if op == "push":
                    yield event, step._replace(flying=s.flying | {(rank, (peer, call % slots, rank, word), call, None)})
                elif op == "empty":
                    old = call if empty == "at once" else call - 1
                    yield event, step._replace(flying=s.flying | {(rank, (rank, old % slots, peer, word), None, old)})
                else:
                    found = s.memory[places[rank, call % slots, peer, word]]
                    if found is not None:  # otherwise it polls on
                        yield event, step if found == call else f"rank {rank} takes call {found}'s word in call {call}"

    first = State((0,) * ranks, ((0,) * words,) * ranks, (None,) * len(places), frozenset())
    came_from, queue = {first: None}, deque([first])
    while queue:
        state = queue.popleft()
        successors = list(after(state))
        if not successors and any(call < calls for call in state.calls):
            return Verdict("every rank waits for ever", len(came_from), history(came_from, state))
        for event, then in successors:
            if isinstance(then, str):
                return Verdict(then, len(came_from), (*history(came_from, state), event))
            if then not in came_from:
                came_from[then] = state, event
                queue.append(then)
    return Verdict(None, len(came_from))


def put(values: tuple, i: int, value) -> tuple:
    return values[:i] + (value,) + values[i + 1 :]


def history(came_from: dict, state: State) -> tuple[str, ...]:
    events = []
    while came_from[state]:
        state, event = came_from[state]
        events.append(event)
    return tuple(reversed(events))

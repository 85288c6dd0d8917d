"""The protocols of `push.py` and `two_shot_push.py` as a state machine, and a search through every order of events.

    search(slots=2)                       Verdict(fault=None, ...): no order loses, mixes or waits for ever
    search(slots=1).fault                 "rank 0 overwrites ...": one slot is not enough
    search(slots=2, empty="next").fault   likewise: to empty a slot one call late takes a third slot
    search(slots=2, sums=1)               two shots: two slots for the parts, one for the sums, which lies behind them

Each rank runs calls 0, 1, 2, ...; within a call every word has a thread of its own. A thread pushes its word to each
peer, then takes its peers' words and empties their places; with two shots it then does so once more, with the sum.
Stores are slow: a push may land at any time after it was
issued, even after the kernel that issued it has ended; an emptying store lands before its kernel ends. `boundary`
False lets a rank's next kernel start before that, as programmatic dependent launch would without its wait.
"""
from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
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


def search(calls: int = 3, **protocol) -> Verdict:
    """Try every order of events of `calls` calls of a `machine`; stop at the fault that takes the fewest."""
    first, after = machine(calls=calls, **protocol)
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


def walk(seed: int, calls: int = 3, **protocol) -> Verdict:
    """One order of events of a `machine` that is too large to try them all, drawn at random: emptying stores late."""
    state, after = machine(calls=calls, **protocol)
    draw, path = random.Random(seed), []
    while successors := list(after(state)):
        faults = [successor for successor in successors if isinstance(successor[1], str)]
        late = [0.02 if "emptying" in event else 1.0 for event, _ in successors]
        event, state = faults[0] if faults else draw.choices(successors, late)[0]
        path.append(event)
        if faults:
            return Verdict(state, len(path), tuple(path))
    return Verdict("every rank waits for ever" if min(state.calls) < calls else None, len(path), tuple(path))


def machine(ranks: int = 2, words: int = 2, calls: int = 3, slots: int = 2, sums: int = 0, empty: str = "at once",
            boundary: bool = True) -> tuple[State, Callable]:
    """The state in which everything begins, and what can happen in any state.

    slots  used in turn for what the first shot, or the only one, pushes
    sums   slots used in turn for what the second shot pushes; 0: one shot
    empty  "at once": a thread empties a place when it has read it; "next": in the call after
    """
    places = {p: i for i, p in enumerate((rank, slot, sender, word) for rank in range(ranks)
              for slot in range(slots + sums) for sender in range(ranks) for word in range(words))}

    def operations(rank: int, call: int) -> list[tuple[str, int, int]]:
        """What a thread does in a call: (operation, slot, peer)."""
        peers = [r for r in range(ranks) if r != rank]

        def shots(call: int) -> list[int]:
            return [call % slots, *([slots + call % sums] if sums else [])]

        todo = [("empty", slot, p) for slot in shots(call - 1) for p in peers] if empty == "next" and call else []
        for slot in shots(call):
            todo += [("push", slot, p) for p in peers]
            todo += [(op, slot, p) for p in peers for op in (("take", "empty") if empty == "at once" else ("take",))]
        return todo

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
                op, slot, peer = todo[at]
                step = s._replace(at=put(s.at, rank, put(s.at[rank], word, at + 1)))
                event = f"rank {rank}, call {call}, word {word}: {op} {peer}"
                if op == "push":
                    yield event, step._replace(flying=s.flying | {(rank, (peer, slot, rank, word), call, None)})
                elif op == "empty":
                    old = call if empty == "at once" else call - 1
                    yield event, step._replace(flying=s.flying | {(rank, (rank, slot, peer, word), None, old)})
                else:
                    found = s.memory[places[rank, slot, peer, word]]
                    if found is not None:  # otherwise it polls on
                        yield event, step if found == call else f"rank {rank} takes call {found}'s word in call {call}"

    return State((0,) * ranks, ((0,) * words,) * ranks, (None,) * len(places), frozenset()), after


def put(values: tuple, i: int, value) -> tuple:
    return values[:i] + (value,) + values[i + 1 :]


def history(came_from: dict, state: State) -> tuple[str, ...]:
    events = []
    while came_from[state]:
        state, event = came_from[state]
        events.append(event)
    return tuple(reversed(events))

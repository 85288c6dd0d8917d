"""An all-reduce on paper: steps, barriers and bytes of a ring, one and two shots, read or pushed.

    algorithm      steps in which data moves   bytes that leave a rank   barriers
    ring           2 (n - 1)                   2 (n - 1)/n of the tensor  none: each step waits for its neighbour
    two_shot       2                           2 (n - 1)/n                3
    one_shot       1                           n - 1 times the tensor     2
    push           1                           n - 1 times the tensor     none: the data are their own flags
    two_shot_push  2                           2 (n - 1)/n                none

Source of the ring's: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
The other four are `parallel/all_reduce`; a test compares `bytes_out` with theirs, and the page counts on its own.
"""
from __future__ import annotations

from ..errors import UserError

ALGORITHMS = ("ring", "one_shot", "two_shot", "push", "two_shot_push")


def collective(query: dict) -> dict:
    """{"algorithm", "world", "bytes"} -> the same with steps, barriers, bytes_out and messages of one rank.

    bytes     of one rank's tensor
    messages  that one rank sends
    """
    algorithm, world, nbytes = query["algorithm"], query["world"], query["bytes"]
    if algorithm not in ALGORITHMS:
        raise UserError(f"unknown algorithm {algorithm!r}; known: {', '.join(ALGORITHMS)}")
    if world < 2:
        raise UserError(f"an all-reduce needs at least 2 ranks, not {world}")
    if nbytes < 1:
        raise UserError(f"a message has at least 1 byte, not {nbytes}")
    peers, whole = world - 1, algorithm in ("one_shot", "push")
    return {"algorithm": algorithm, "world": world, "bytes": nbytes,
            "steps": {"ring": 2 * peers, "one_shot": 1, "two_shot": 2, "push": 1, "two_shot_push": 2}[algorithm],
            "barriers": {"one_shot": 2, "two_shot": 3}.get(algorithm, 0),
            "bytes_out": peers * nbytes if whole else 2 * peers / world * nbytes,
            "messages": peers if whole else 2 * peers}

"""An all-reduce on paper: steps, barriers and bytes of ring, one-shot, two-shot and push. The page's twin of it counts.

    algorithm   steps in which data moves   bytes that leave a rank   barriers
    ring        2 (n - 1)                   2 (n - 1)/n of the tensor  none: each step waits for its neighbour
    two_shot    2                           2 (n - 1)/n                3
    one_shot    1                           n - 1 times the tensor     2
    push        1                           n - 1 times the tensor     none: the data are their own flags

Source of the ring's: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
The other three are `parallel/all_reduce`; a test compares `bytes_out` with theirs.
"""
from __future__ import annotations

from ..errors import UserError

ALGORITHMS = ("ring", "one_shot", "two_shot", "push")


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
            "steps": {"ring": 2 * peers, "one_shot": 1, "two_shot": 2, "push": 1}[algorithm],
            "barriers": {"ring": 0, "one_shot": 2, "two_shot": 3, "push": 0}[algorithm],
            "bytes_out": peers * nbytes if whole else 2 * peers / world * nbytes,
            "messages": {"ring": 2 * peers, "one_shot": peers, "two_shot": 2 * peers, "push": peers}[algorithm]}

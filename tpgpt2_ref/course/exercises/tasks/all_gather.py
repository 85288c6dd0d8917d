"""Write `all_gather(x, rank, n, exchange)`: every rank's `x` (m,), one after the other, rank 0's first: (n * m,) on
every rank. What you have is one message at a time:

`exchange(x, to, source)` sends x to rank `to` and returns the tensor that rank `source` sends meanwhile. Every rank
must call it equally often.
"""
import torch

HINTS = ("Stand the ranks in a ring. Send to the right, `(rank + 1) % n`, take from the left, `(rank - 1) % n`.",
         "In each step pass on what has just come. After n - 1 steps everybody has seen everything.",
         "After step s you hold what rank `(rank - s) % n` began with.")
RIGHT = "n - 1 messages of one x each: no rank ever sends what the receiver has."


def start(x, rank, n, exchange):
    # x (m,)  ->  (n * m,)
    ...


def solution(x, rank, n, exchange):
    parts = [None] * n
    parts[rank] = x
    for step in range(1, n):
        x = exchange(x, to=(rank + 1) % n, source=(rank - 1) % n)   # pass on what came last
        parts[(rank - step) % n] = x
    return torch.cat(parts)                                         # n * (m,) -> (n * m,)


def as_it_came(x, rank, n, exchange):
    parts = [x]
    for _ in range(1, n):
        parts.append(exchange(parts[-1], (rank + 1) % n, (rank - 1) % n))
    return torch.cat(parts)


def always_its_own(x, rank, n, exchange):
    parts = [None] * n
    parts[rank] = x
    for step in range(1, n):
        parts[(rank - step) % n] = exchange(x, (rank + 1) % n, (rank - 1) % n)
    return torch.cat(parts)


def one_step(x, rank, n, exchange):
    parts = [torch.zeros_like(x)] * n
    parts[rank] = x
    parts[(rank - 1) % n] = exchange(x, (rank + 1) % n, (rank - 1) % n)
    return torch.cat(parts)


MISTAKES = {
    as_it_came: "Every part is there, but in the order in which it came: rank 1's result begins with rank 1's own. "
                "The order is by rank.",
    always_its_own: "You send your own x in every step, so your right neighbour gets it {n} - 1 times, and nobody "
                    "else ever does. Pass on what came last.",
    one_step: "One message is enough for two ranks. With {n}, each rank knows only its left neighbour's part.",
}


def cases(draw, n):
    for m in (1, draw.integer(2, 9)):
        yield {"x": draw.tensor(n, m)}


def cost(log) -> int:
    return sum(nbytes for _, nbytes in log)  # bytes


def play(answer, case, tools):
    return answer(case["x"][tools.rank], tools.rank, tools.n, tools.exchange)

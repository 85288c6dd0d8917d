"""Write `ring_all_reduce(x, rank, n, exchange)`: the sum of all ranks' `x` (m,), on every rank. n divides m.

`exchange(x, to, source)` sends x to rank `to` and returns the tensor that rank `source` sends meanwhile. Send as
little as can be: no rank needs to send more than 2 (n - 1)/n of x.
"""
import torch

HINTS = ("Cut x into n chunks. First round, n - 1 steps: pass one chunk to the right, add the one that comes. Then "
         "each rank holds one chunk's whole sum.",
         "Second round, n - 1 steps: pass the finished chunks on, and overwrite instead of adding.",
         "In step s of the first round rank r sends chunk (r - s) % n and receives chunk (r - s - 1) % n. It ends "
         "with chunk (r + 1) % n whole.")
RIGHT = "2 (n - 1) messages of 1/n each. That is where busbw's factor 2 (n - 1)/n comes from."


def start(x, rank, n, exchange):
    # x (m,)  ->  (m,), the sum over the ranks
    ...


def solution(x, rank, n, exchange):
    chunks = list(x.clone().chunk(n))                       # n * (m/n,)
    right, left = (rank + 1) % n, (rank - 1) % n
    for s in range(n - 1):                                  # each rank gathers one whole sum
        chunks[(rank - s - 1) % n] += exchange(chunks[(rank - s) % n], right, left)
    for s in range(n - 1):                                  # the whole sums go round
        chunks[(rank - s) % n] = exchange(chunks[(rank - s + 1) % n], right, left)
    return torch.cat(chunks)


def whole_tensors(x, rank, n, exchange):
    total = x.clone()
    for _ in range(n - 1):
        x = exchange(x, (rank + 1) % n, (rank - 1) % n)
        total += x
    return total


def first_round_only(x, rank, n, exchange):
    chunks = list(x.clone().chunk(n))
    for s in range(n - 1):
        chunks[(rank - s - 1) % n] += exchange(chunks[(rank - s) % n], (rank + 1) % n, (rank - 1) % n)
    return torch.cat(chunks)


def adds_twice(x, rank, n, exchange):
    chunks = list(x.clone().chunk(n))
    for s in range(n - 1):
        chunks[(rank - s - 1) % n] += exchange(chunks[(rank - s) % n], (rank + 1) % n, (rank - 1) % n)
    for s in range(n - 1):
        chunks[(rank - s) % n] += exchange(chunks[(rank - s + 1) % n], (rank + 1) % n, (rank - 1) % n)
    return torch.cat(chunks)


def one_step(x, rank, n, exchange):
    return x + exchange(x, (rank + 1) % n, (rank - 1) % n)


MISTAKES = {
    whole_tensors: "The sum is right, but each rank sends its whole x {n} - 1 times. Cut x into {n} chunks: then 2 "
                   "({n} - 1)/{n} of x is all that a rank sends.",
    first_round_only: "Each rank has one chunk of the sum, and unfinished sums elsewhere: the second round, in which "
                      "the finished chunks go round, is missing.",
    adds_twice: "In the second round you still add. The chunks that come are finished: overwrite your own.",
    one_step: "Each rank has added its left neighbour's x only. That is a sum for two ranks, not for {n}.",
}


def cases(draw, n):
    for chunk in (1, draw.integer(2, 9)):
        yield {"x": draw.tensor(n, n * chunk)}


def cost(log) -> int:
    return sum(nbytes for _, nbytes in log)  # bytes


def play(answer, case, tools):
    return answer(case["x"][tools.rank], tools.rank, tools.n, tools.exchange)

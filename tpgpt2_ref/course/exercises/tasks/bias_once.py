"""The second matrix of a pair is cut by rows. Rank r holds some rows of `weight` and the matching columns of `x`, so
its product is one part of a sum.

Write `bias_once(x, weight, bias, rank, all_reduce)`: x W + b, the same on every rank. Each rank gets its own `x`
(T, in/n) and `weight` (in/n, out), and the whole `bias` (out,). `all_reduce(y)` returns the sum of all ranks' y.
"""
HINTS = ("Write the sum for two ranks on paper: (x0 W0 + ...) + (x1 W1 + ...). How often may b stand in it?",
         "Either one rank alone adds the bias before the sum, or every rank adds it after the sum.")
RIGHT = "RowParallelLinear adds it on rank 0 before the sum: then the sum is the last thing to happen."


def start(x, weight, bias, rank, all_reduce):
    # x (T, in/n), weight (in/n, out), bias (out,)  ->  (T, out)
    ...


def solution(x, weight, bias, rank, all_reduce):
    y = x @ weight                 # (T, in/n) -> (T, out), one part of the sum
    if rank == 0:
        y = y + bias
    return all_reduce(y)


def on_every_rank(x, weight, bias, rank, all_reduce):
    return all_reduce(x @ weight + bias)


def without_sum(x, weight, bias, rank, all_reduce):
    return x @ weight + (bias if rank == 0 else 0)


def partial_with_bias(x, weight, bias, rank, all_reduce):
    return x @ weight + bias


def never(x, weight, bias, rank, all_reduce):
    return all_reduce(x @ weight)


MISTAKES = {
    on_every_rank: "The result is too large by {n} - 1 times the bias. Every rank adds it before the sum, so the sum "
                   "counts it {n} times.",
    without_sum: "Each rank has its own part and no more: nobody sums. x W is the sum of the ranks' products.",
    partial_with_bias: "Each rank has its own part and no more: nobody sums. x W is the sum of the ranks' products.",
    never: "The bias is missing.",
}


def cases(draw, n):
    for _ in range(2):
        tokens, width = draw.integer(2, 9), draw.integer(3, 8)
        x, weight, bias = draw.tensor(tokens, n * width), draw.tensor(n * width, 6), draw.tensor(6)
        yield {"x": x, "weight": weight, "bias": bias}


def play(answer, case, tools):
    x, weight, bias = case.values()
    mine = slice(tools.rank * len(weight) // tools.n, (tools.rank + 1) * len(weight) // tools.n)
    return answer(x[:, mine], weight[mine], bias, tools.rank, tools.all_reduce)

"""Algorithm bandwidth is size over time. Bus bandwidth corrects it for what a link must carry, so that it can be held
against the link's own number, whatever the operation and however many ranks.

Write `busbw(op, nbytes, microseconds, n)`: GB/s. `op` is "all_reduce", "all_gather", "reduce_scatter" or "broadcast".
`nbytes` is the whole tensor: what is summed, or what all ranks have after the gather.
"""
HINTS = ("How much must one rank send at least? An all-gather of n parts: all but its own.",
         "An all-reduce is a reduce-scatter and an all-gather, one after the other.",
         "A broadcast passes the whole tensor through every rank: factor 1.")
RIGHT = "At n = 2 the factor of an all-reduce is 1: busbw and algbw agree there, and only there."


def start(op, nbytes, microseconds, n):
    # ->  GB/s
    ...


def solution(op, nbytes, microseconds, n):
    part = (n - 1) / n
    factor = {"all_reduce": 2 * part, "all_gather": part, "reduce_scatter": part, "broadcast": 1}[op]
    return factor * nbytes / microseconds / 1e3             # bytes a us -> GB/s


def algbw(op, nbytes, microseconds, n):
    return nbytes / microseconds / 1e3


def all_alike(op, nbytes, microseconds, n):
    return 2 * (n - 1) / n * nbytes / microseconds / 1e3


def never_twice(op, nbytes, microseconds, n):
    return (1 if op == "broadcast" else (n - 1) / n) * nbytes / microseconds / 1e3


def binary(op, nbytes, microseconds, n):
    return solution(op, nbytes, microseconds, n) * 1e9 / 2**30


MISTAKES = {
    algbw: "That is the algorithm bandwidth: size over time. A link carries another amount, and how much depends on "
           "the operation and on n.",
    all_alike: "You use the all-reduce's factor for every operation. A gather passes each part on once, not twice.",
    never_twice: "An all-reduce passes everything twice: partial sums first, whole sums after.",
    binary: "You divide by 2 to the 30th. Links, and nccl-tests, count in powers of ten.",
}


def cases(draw, n):
    for op in ("all_reduce", "all_gather", "reduce_scatter", "broadcast"):
        yield {"op": op, "nbytes": 1 << draw.integer(20, 30), "microseconds": draw.number(50, 5000),
               "n": draw.choice([3, 4, 8])}

"""`wte` of the tiny model has 257 rows in the checkpoint. One rank holds 320, two ranks hold 192 each: 384 in all.

Write `padded_rows(vocab, n)`: how many rows all `n` ranks hold together. Each rank gets the same number, and that
number is a multiple of 64, because matrix units like it so.
"""
HINTS = ("How many rows must one rank hold at least? `-(-a // b)` divides and rounds up.",
         "Round twice: first to the rows a rank needs, then up to the next multiple of 64. Then count all ranks.")
RIGHT = "The rows beyond the vocabulary are zeros. They cost memory, and the logits are cut after the gather."


def start(vocab, n):
    # vocab: tokens in the checkpoint; n: ranks
    ...


def solution(vocab, n):
    rank = -(-vocab // n)          # what a rank must hold
    return n * (-(-rank // 64) * 64)


def whole(vocab, n):
    return -(-vocab // 64) * 64


def down(vocab, n):
    return n * (vocab // n // 64 * 64)


def unrounded(vocab, n):
    return n * -(-vocab // n)


MISTAKES = {
    down: "You round down: the last tokens of the vocabulary live on no rank.",
    unrounded: "Every token has a place, but a rank's rows are no multiple of 64.",
    whole: "You round the whole to a multiple of 64. On {n} ranks each rank's own part must be one: round a rank's "
           "rows, then multiply by {n}.",
}


def cases(draw, n):
    yield {"vocab": 257, "n": 2}
    for n in (1, 2, 4, 8):
        yield {"vocab": draw.integer(1000, 90000), "n": n}

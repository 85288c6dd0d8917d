"""GPT-2 keeps the three matrices of attention side by side in one: `qkv` (D, 3D) is [Q | K | V]. Each third holds the
heads one after the other.

Write `qkv_slice(qkv, rank, n)`: the columns that rank `rank` of `n` needs for its own heads, (D, 3D/n), in the order
[q | k | v]. Heads are dealt in order: rank 0 gets the first D/n columns of each third.
"""
import torch

HINTS = ("Part q, k and v first. Then each third is an easy cut.",
         "`qkv.chunk(3, dim=1)` parts them; `chunk(n, dim=1)[rank]` takes a rank's piece; `torch.cat` joins.")
RIGHT = "Whole heads, and all three parts of each: this rank's attention needs nothing from any other."


def start(qkv, rank, n):
    # qkv (D, 3D)  ->  (D, 3D/n)
    ...


def solution(qkv, rank, n):
    parts = qkv.chunk(3, dim=1)                                         # q, k, v: (D, D) each
    return torch.cat([p.chunk(n, dim=1)[rank] for p in parts], dim=1)   # (D, D/n) each -> (D, 3D/n)


def cut_first(qkv, rank, n):
    return qkv.chunk(n, dim=1)[rank]


def rows(qkv, rank, n):
    return qkv.chunk(n, dim=0)[rank]


def rows_by_width(qkv, rank, n):
    width = qkv.shape[1] // n  # the right count, along the wrong dimension: more rows than there are
    return qkv[rank * width : (rank + 1) * width]


def rows_of_parts(qkv, rank, n):
    return torch.cat([p.chunk(n, dim=0)[rank] for p in qkv.chunk(3, dim=1)], dim=1)


def rows_parted(qkv, rank, n):
    return torch.cat([p.chunk(n, dim=0)[min(rank, len(p.chunk(n, dim=0)) - 1)] for p in qkv.chunk(3, dim=0)], dim=0)


def first_rank(qkv, rank, n):
    return solution(qkv, 0, n)


def every_nth(qkv, rank, n):
    return torch.cat([p[:, rank::n] for p in qkv.chunk(3, dim=1)], dim=1)


ROWS = "You cut rows, not columns. Rows are the inputs; a head is a group of columns: cut dimension 1."
MISTAKES = {
    cut_first: "With two ranks, rank 0 has all of Q and half of K, and no V: you cut before parting q, k and v.",
    **dict.fromkeys((rows, rows_by_width, rows_of_parts, rows_parted), ROWS),
    first_rank: "Every rank gets rank 0's columns: `rank` is not used.",
    every_nth: "You deal single columns, like cards. A head is a run of neighbouring columns: deal runs.",
}


def cases(draw, n):
    for n in (2, 3, 4):
        width = n * draw.integer(2, 4)
        qkv = draw.tensor(width, 3 * width)
        for rank in range(n):
            yield {"qkv": qkv, "rank": rank, "n": n}

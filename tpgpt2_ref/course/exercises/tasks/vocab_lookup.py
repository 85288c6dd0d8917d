"""The embedding's rows are dealt to the ranks: rank r holds tokens r * rows to (r + 1) * rows - 1, as `shard`
(rows, D).

Write `vocab_lookup(ids, shard, rank, all_reduce)`: the vectors of all tokens `ids` (T,), as (T, D), the same on every
rank. A rank may only look up what it holds. `all_reduce(y)` returns the sum of all ranks' y.
"""
import torch

HINTS = ("A token lives on one rank. If all others add zeros, the sum is its vector.",
         "`row = ids - rank * len(shard)`. For which rows is this rank at home? Look others up in row 0, then zero "
         "them.")
RIGHT = "This sum is the first collective of a forward, before any layer. Diagram 2 calls it a broadcast."


def start(ids, shard, rank, all_reduce):
    # ids (T,) int64, shard (rows, D)  ->  (T, D)
    ...


def solution(ids, shard, rank, all_reduce):
    row = ids - rank * len(shard)
    foreign = (row < 0) | (row >= len(shard))
    x = shard[row.masked_fill(foreign, 0)]           # (T,) -> (T, D)
    return all_reduce(x.masked_fill(foreign[:, None], 0))


def unmasked(ids, shard, rank, all_reduce):
    return all_reduce(shard[(ids - rank * len(shard)).clamp(0, len(shard) - 1)])


def modulo(ids, shard, rank, all_reduce):
    return all_reduce(shard[ids % len(shard)])


def without_sum(ids, shard, rank, all_reduce):
    row = ids - rank * len(shard)
    return torch.where(((row >= 0) & (row < len(shard)))[:, None], shard[row.clamp(0, len(shard) - 1)], 0)


def without_offset(ids, shard, rank, all_reduce):
    own = ids < len(shard)
    return all_reduce(shard[ids.clamp(0, len(shard) - 1)] * own[:, None])


MISTAKES = {
    unmasked: "A rank that does not hold a token adds another token's vector to the sum. It must add zeros.",
    modulo: "`ids % rows` finds a row on every rank, and the wrong one on all but one. A rank that does not hold a "
            "token must add zeros.",
    without_sum: "Each rank has the vectors of its own tokens, and zeros for the others: nobody sums.",
    without_offset: "Every rank looks up tokens 0 to rows - 1, as if it were rank 0. Row 0 of a shard is token rank * "
                    "rows.",
}


def cases(draw, n):
    for _ in range(2):
        rows = draw.integer(3, 6)
        ids = [draw.integer(0, n * rows - 1) for _ in range(6)] + [0, rows, n * rows - 1]
        yield {"ids": ids, "table": draw.tensor(n * rows, 4)}


def play(answer, case, tools):
    ids, table = case.values()
    shard = table.chunk(tools.n)[tools.rank]
    return answer(torch.tensor(ids, device=table.device), shard, tools.rank, tools.all_reduce)

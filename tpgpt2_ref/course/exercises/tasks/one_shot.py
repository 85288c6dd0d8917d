"""Small tensors are summed fastest when every rank reads all others at once, with no ring.

`shared[r]` is rank r's tensor (m,), in memory that all ranks read: `shared[rank]` is yours to write. `barrier()`
returns when every rank has called it. Write `one_shot(x, shared, rank, barrier)`: the sum of all ranks' `x` (m,), a
new tensor. It is called again and again, and some rank is always late.
"""
from functools import partial

import torch

HINTS = ("Write, let everybody arrive, read and sum.",
         "A fast rank may already be in the next call while a slow one still reads. What would the slow one read?",
         "Two barriers: one says \"my data is there\", the other \"I have read yours\".")
RIGHT = ("Sum in the order of the ranks, and every rank gets the same bits. Push saves the barriers: it puts the "
         "signal into the data.")


def start(x, shared, rank, barrier):
    # x (m,), shared: n tensors (m,)  ->  (m,), the sum over the ranks
    ...


def solution(x, shared, rank, barrier):
    shared[rank].copy_(x)
    barrier()                          # everybody's data is there
    total = torch.zeros_like(x)
    for other in shared:               # in the order of the ranks: the same bits everywhere
        total += other
    barrier()                          # everybody has read: the next call may write
    return total


def nobody_waits(x, shared, rank, barrier):
    shared[rank].copy_(x)
    return torch.stack(list(shared)).sum(0)


def reads_too_early(x, shared, rank, barrier):
    shared[rank].copy_(x)
    total = torch.stack(list(shared)).sum(0)
    barrier()
    return total


def leaves_too_early(x, shared, rank, barrier):
    shared[rank].copy_(x)
    barrier()
    return torch.stack(list(shared)).sum(0)


def own_only(x, shared, rank, barrier):
    shared[rank].copy_(x)
    barrier()
    barrier()
    return shared[rank].clone()


MISTAKES = {
    own_only: "It gives back this rank's own x: read the others' tensors and add them.",
    nobody_waits: "Nobody waits: a rank that was late had not written yet, and the others summed what lay there "
                  "before.",
    reads_too_early: "A rank that was late had not written yet, and the others summed what lay there before: a "
                     "barrier is missing between writing and reading.",
    leaves_too_early: "A slow reader got numbers of the next call: the fast ranks came back and wrote over theirs. A "
                      "barrier is missing after the reading.",
}


def cases(draw, n):
    yield {"calls": draw.tensor(2, n, draw.integer(3, 9))}


def play(answer, case, tools):
    """Two calls, in the worst order. Rank 0 writes first and the last rank last, each when those before it have done
    what they can do without it. And rank 0 reads when all others have gone on as far as they can without it."""
    shared, wait = tools.shared(case["calls"].shape[-1])
    begun, barriers, done = tools.steps(), tools.steps(), tools.steps()  # calls begun, barriers met, calls done
    results, met = [], 0
    shared[tools.rank].zero_()
    wait()
    for call, xs in enumerate(case["calls"].to(shared[0].device)):

        def barrier(call=call):
            nonlocal met
            met += 1
            barriers.at(met)
            begun.at(call + 1)
            wait()
            if met == 1 and tools.rank == 0:
                barriers.until(range(1, tools.n), 2)

        done.until(range(1, tools.n if tools.rank else 0), call)
        begun.until(range(call, tools.rank), call + 1)
        results.append(answer(xs[tools.rank], shared, tools.rank, barrier))
        begun.at(call + 1)
        done.at(call + 1)
    barriers.at(1 << 20)
    return torch.stack(results) if all(map(torch.is_tensor, results)) else results[0]


def speed(answer, tools) -> list[dict]:
    """Microseconds a call on GPUs, beside reading the peers' tensors alone at the rate of a large copy."""
    shared, barrier = tools.shared(16 << 20)
    if not shared[0].is_cuda:
        return []
    peer = shared[(tools.rank + 1) % tools.n]
    rate = peer.nbytes / microseconds(lambda: peer.clone())  # bytes a us
    rows = []
    for nbytes in (1536, 49152, 1572864):
        views = [t[: nbytes // 4] for t in shared]
        x = torch.ones_like(views[0])
        us = microseconds(partial(answer, x, views, tools.rank, barrier))
        rows.append({"bytes": nbytes, "us": us, "floor_us": (tools.n - 1) * nbytes / rate})
    return rows


def microseconds(call, calls: int = 50) -> float:
    for _ in range(5):
        call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3 / calls


def show_speed(by_rank: list[list[dict]]) -> str:
    slowest = [max(rows, key=lambda row: row["us"]) for rows in zip(*by_rank)]
    return "On these GPUs: " + "; ".join(
        f"{row['bytes']:,} B in {row['us']:.1f} us (reading alone, at the speed of a large copy: {row['floor_us']:.1f})"
        for row in slowest) + "." if slowest else ""

"""Who gets which heads when c_attn is cut (Diagram 2, steps 1 and 2): by head, or as a naive half of its columns.

The checkpoint's matrix is [Q | K | V] over all heads. By head, rank r gets the same heads out of each of the three, as
`QKVParallelLinear` loads them. The naive cut takes columns in a row: at two ranks all of Q and half of K.
"""
from __future__ import annotations

from ..config import FAMILY
from ..errors import UserError

CUTS = ("by head", "naive half")


def heads(query: dict) -> dict:
    """{"gpt2", "tp", "cut"} -> widths, the columns of Q, K and V on each rank, and the heads that are parted.

    ranks   [{rank, q, k, v: (start, stop) of that matrix's columns, whole_heads}]
    parted  heads of which no rank has q, k and v
    """
    gpt2, tp, cut = query["gpt2"], query["tp"], query["cut"]
    if gpt2 not in FAMILY:
        raise UserError(f"unknown model {gpt2!r}; known: {', '.join(FAMILY)}")
    if cut not in CUTS:
        raise UserError(f"unknown cut {cut!r}; known: {', '.join(CUTS)}")
    if tp < 1:
        raise UserError(f"at least 1 rank, not {tp}")
    config, by_head = FAMILY[gpt2], cut == "by head"
    d, size, local = config.n_embd, config.head_size, -(-config.n_head // tp)
    ranks = []
    for r in range(tp):
        columns = []
        for i in range(3):  # of Q, of K, of V, each counted from the start of its own matrix
            low, high = ((r * local * size, (r + 1) * local * size) if by_head
                         else (r * 3 * d // tp - i * d, (r + 1) * 3 * d // tp - i * d))
            start, stop = min(max(low, 0), d), min(max(high, 0), d)
            columns.append([start, max(stop, start)])
        whole = [h for h in range(config.n_head)
                 if all(start <= h * size and (h + 1) * size <= stop for start, stop in columns)]
        ranks.append({"rank": r, "q": columns[0], "k": columns[1], "v": columns[2], "whole_heads": whole})
    whole = {h for rank in ranks for h in rank["whole_heads"]}
    return {"gpt2": gpt2, "tp": tp, "cut": cut, "hidden": d, "heads": config.n_head, "head_size": size,
            "heads_a_rank": local if by_head else None,
            "padding_heads": local * tp - config.n_head if by_head else 0,
            "q_width": local * size if by_head else None, "qkv_width": 3 * local * size if by_head else None,
            "diagram_width": d // 4, "ranks": ranks,
            "parted": [h for h in range(config.n_head) if h not in whole]}

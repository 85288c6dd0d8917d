"""What a whole forward costs: the collectives it makes, by the model of `cost.py`, and the work between them.

    t = fixed + layers * us_per_layer + weights * us_per_byte + cache * us_per_byte + flops * us_per_flop
        + sum over collectives of alpha + beta * bytes

GPT-2's all-reduces stand on the critical path, so nothing overlaps and the terms add up. A byte of cache has a price
for each of a decode step's two kernels (`kernels/decode_attention.py`). The work's six coefficients are fitted to
half the rows of decode.json or prefill.json and judged on the others: for each rung of the ladder and, where rows
suffice, for each kind of kernel that a decode step's batch calls for. The half is drawn at random out of every
(tp, sum), so that both sides hold all; DRAWS further halves say how much hangs on the draw.

What communication costs is also measured without any model: the time of all ranks, less that of one rank which does
its own part and sends nothing (`--imagine` of the benches). Nothing here imports torch.
"""
from __future__ import annotations

import random
from collections import defaultdict
from statistics import mean

from ..config import FAMILY, GPT2Config, padded
from ..errors import UserError
from ..kernels.tiles import Vector, attention_tile
from .collectives import error_fields, least_squares, predict

VOCAB_MULTIPLE = 64  # rows of the vocabulary a rank, as `parallel/embedding.py` pads it; a test compares
INNER_MULTIPLE = 8  # columns of the MLP a rank, as `gpt2.py` pads them
TERMS = ("alpha_us", "us_per_layer", "beta_us_per_byte", "us_per_kv_byte", "us_per_kv_byte_few", "us_per_flop")
CACHE = TERMS.index("us_per_kv_byte"), TERMS.index("us_per_kv_byte_few")
FEWEST_ROWS = 8  # 4 to fit, 4 to judge
DRAWS = 40
GOOD = 0.15  # the error that a prediction should stay within
ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
LOGITS = (None, "eager", "graph")  # rungs that gather all logits; the others gather each rank's best tokens
KEY = 8  # bytes of a best token
UNPRICED = ("halves", "+clusters")  # rungs whose sums are no calls: hidden, or part of what a kernel reads
BY_PUSH = ("+sum", "+pdl")  # rungs at which push sums and normalizes in one, and gathers those; without it the library
FROM_BATCH = (1, 4, 32)  # where a step's products become `gemv`, `skinny` and `wide` kernels; a test compares


def collectives(config: GPT2Config, tp: int, batch: int, tokens: int, plan: str = "shipped", itemsize: int = 2,
                rung: str | None = None) -> list[tuple[str, int, int]]:
    """[(op, bytes of a rank's input, how often)] of one forward of `tokens` new tokens a sequence.

    All-reduces of T*D after the embedding and after both c_proj of each layer; an all-gather of the last
    positions' logits; as drawn, three all-gathers of T * (this rank's heads) a layer besides.
    rung    None: gpt2.py's forward. A decode step of the higher rungs gathers best tokens, not logits; in its last
            layer a "fused" prefill sums the prompts' last tokens alone
    """
    if tp == 1:
        return []
    t, heads = batch * tokens, -(-config.n_head // tp)
    short = 2 if rung == "fused" else 0  # all-reduces of `batch` rows
    gathered = local_vocab(config, tp) * itemsize if rung in (*LOGITS, "fused") else KEY
    out = [("all_reduce", t * config.n_embd * itemsize, 2 * config.n_layer + 1 - short),
           *([("all_reduce", batch * config.n_embd * itemsize, short)] if short else []),
           ("all_gather", batch * gathered, 1)]
    if plan == "as-drawn":
        out.append(("all_gather", t * heads * config.head_size * itemsize, 3 * config.n_layer))
    return out


def local_vocab(config: GPT2Config, tp: int) -> int:
    return padded(config.vocab_size, VOCAB_MULTIPLE * tp) // tp


def work(config: GPT2Config, tp: int, batch: int, tokens: int, context: int, itemsize: int = 2) -> tuple[float, ...]:
    """What TERMS multiply: one rank's (1, layers, bytes of weights, of cache, of cache by `vector`, flops).

    context  tokens of a sequence already in the cache
    """
    d, heads = config.n_embd, -(-config.n_head // tp)
    inner = padded(config.inner, INNER_MULTIPLE * tp) // tp
    width = heads * config.head_size  # of q, k, v and of attention's output, on this rank
    block = d * 3 * width + width * d + 2 * d * inner  # c_attn, c_proj, c_fc, c_proj
    head = local_vocab(config, tp) * d
    t, seen = batch * tokens, context + (tokens + 1) / 2  # keys that a query sees, on average
    cache = 2 * config.n_layer * batch * (context + tokens) * width * itemsize
    flops = 2 * t * block * config.n_layer + 2 * batch * head + 4 * t * seen * width * config.n_layer
    few = cache if tokens == 1 and isinstance(attention_tile(batch, heads), Vector) else 0
    return 1.0, config.n_layer, (block * config.n_layer + head) * itemsize, cache - few, few, flops


def communication_us(model: list[dict], calls, tp: int, path: str | None, graph: bool,
                     rung: str | None = None) -> tuple[float, list[dict]]:
    """Microseconds of all `calls` (see `collectives`), and the prediction behind each kind.

    path, rung  the algorithm that all-reduces take (None: the fastest), and the rung of the ladder that makes the calls
    """
    if rung not in BY_PUSH:
        model = [r for r in model if (r["op"], r["path"]) != ("all_gather", "push")]
    found = [predict(model, op, nbytes, tp, path_of(model, op, path), graph) for op, nbytes, _ in calls]
    return sum(f["us"] * times for f, (_, _, times) in zip(found, calls, strict=True)), found


def path_of(model: list[dict], op: str, path: str | None) -> str | None:
    """The path that `op` takes where all-reduces take `path`: the same, or the library's own on the same link."""
    if path is None or any(r["op"] == op and r["path"] == path for r in model):
        return path
    return "/".join(["nccl", *path.split("/")[1:]])


def fit_forward(name: str, rows: list[dict], model: list[dict]) -> list[dict]:
    """Rows of `decode` or `prefill` -> one row for each rung, fitted to half of them and judged on the rest.

    model  the collectives' rows, which price what TP > 1 adds
    A decode step that sums otherwise than its rung is made for runs other kernels, and stays out. So does a prefill in
    halves: its sums run under its products, and their times don't add up.
    """
    groups = defaultdict(list)
    for row in rows:
        other = row["rung"] in UNPRICED or \
            name == "decode" and row["rung"] in BY_PUSH and row["sum"] not in ("none", "push")
        if row["engine"] == "tpgpt2" and _config(row["model"]) is not None and not other:
            groups[row["rung"]].append(row)
    out = []
    for rung, found in sorted(groups.items()):
        found = [(row, *_explain(name, row, model)) for row in sorted(
            found, key=lambda r: (r["model"], r["tp"], r["sum"], r["batch"], r["prompt_len"]))]
        for first, part in _by_kernel(name, [f for f in found if f[1] is not None]).items():
            if len(part) < FEWEST_ROWS:
                continue
            coefficients, errors = _fit_half(name, part, draw=0)
            again = [_fit_half(name, part, draw)[1] for draw in range(1, DRAWS + 1)]
            real = max((row["tp"] for row, _, _ in part if row["sum"] != "none"), default=1)  # the others are imagined
            out.append({"op": name, "path": rung, "world": real,
                        "graph": in_graph(name, rung), "from_bytes": 0, "from_batch": first,
                        "models": len({row["model"] for row, _, _ in part}),
                        **dict(zip(TERMS, coefficients, strict=True)), **error_fields(errors),
                        "heldout_within_15_percent": mean(e <= GOOD for e in errors),
                        "draws_within_15_percent": mean(e <= GOOD for errors in again for e in errors)})
    return out


def _fit_half(name: str, part: list[tuple], draw: int) -> tuple[list[float], list[float]]:
    """(coefficients fitted to one half of the rows, relative errors on the other), half of every (tp, sum) in each."""
    dice = random.Random(draw)
    order = sorted(part, key=lambda f: (f[0]["tp"], f[0]["sum"], dice.random()))
    half, rest = order[::2], order[1::2]
    coefficients = list(least_squares([f for _, f, _ in half], [_us(name, row) for row, _, _ in half],
                                      [comm for *_, comm in half])[0])
    for kernel, other in (CACHE, CACHE[::-1]):  # one that none of them ran is not free: the other's price
        if not any(f[kernel] for _, f, _ in half):
            coefficients[kernel] = coefficients[other]
    return coefficients, [abs((_dot(coefficients, f) + comm) / _us(name, row) - 1) for row, f, comm in rest]


def _by_kernel(name: str, found: list[tuple]) -> dict[int, list[tuple]]:
    """{least batch: rows}: a decode step's rows by the kernels of their batch, if each kind has enough of them."""
    parts = defaultdict(list)
    for f in found:
        parts[max(b for b in FROM_BATCH if b <= f[0]["batch"])].append(f)
    return parts if name == "decode" and all(len(p) >= FEWEST_ROWS for p in parts.values()) else {1: found}


def measured_shares(rows: list[dict]) -> list[dict]:
    """What communication takes of each row of `decode` or `prefill` that has a run of one rank's own part beside it.

    -> the rows of several ranks, each with `alone_us` and `communication_share`, 1 - alone_us / its own time. Every
    all-reduce algorithm is held against the same: work that needs no sum. Where its kernels do more, it counts too.
    """
    name = "decode" if rows and "us_per_step_median" in rows[0] else "prefill"
    rows = [row for row in rows if row["engine"] == "tpgpt2" and row["tp"] > 1]

    def case(row):
        return tuple(row[k] for k in ("model", "dtype", "tp", "rung", "batch", "prompt_len"))

    alone = {case(row): _us(name, row) for row in rows if row["sum"] == "none"}
    return [{**row, "alone_us": alone[case(row)], "communication_share": 1 - alone[case(row)] / _us(name, row)}
            for row in rows if row["sum"] != "none" and case(row) in alone]


def in_graph(name: str, rung: str) -> bool:
    """Whether a rung's forward is a CUDA graph: every decode step but the eager one, and the fused prefill."""
    return rung != "eager" if name == "decode" else rung == "fused"


def _explain(name, row, model):
    """(features, predicted communication) of a recorded row; (None, 0) if the model can't price its collectives."""
    config, itemsize = _config(row["model"]), ITEMSIZE[row["dtype"]]
    if name == "decode":  # the mean step of a run of `new_tokens`
        tokens, context = 1, row["prompt_len"] + row.get("new_tokens", 128) // 2
    else:
        tokens, context = row["prompt_len"], 0
    features = work(config, row["tp"], row["batch"], tokens, context, itemsize)
    if row["sum"] == "none":  # one rank, or one rank's own part of several
        return features, 0.0
    calls = collectives(config, row["tp"], row["batch"], tokens, itemsize=itemsize, rung=row["rung"])
    try:
        path = None if row["sum"] == "auto" else row["sum"]
        comm, _ = communication_us(model, calls, row["tp"], path, in_graph(name, row["rung"]), row["rung"])
    except UserError:
        return None, 0.0
    return features, comm


def forward(model: list[dict], config: GPT2Config, tp: int, batch: int, tokens: int, context: int = 0,
            rung: str | None = None, path: str | None = None, plan: str = "shipped", itemsize: int = 2) -> dict:
    """Predicted microseconds of one forward (tokens=1: a decode step), its communication and its share.

    Without a decode or prefill run of so many ranks in the model, only the communication is known: `us` is None then.
    rung    None: the fastest of those that were recorded with most models
    """
    phase, features = "decode" if tokens == 1 else "prefill", work(config, tp, batch, tokens, context, itemsize)
    candidates = _rungs(model, phase, tp, batch, rung)
    widest = max((r.get("models", 1) for r in candidates), default=1)  # a fit to one model knows no other
    fit = min((r for r in candidates if r.get("models", 1) == widest),
              key=lambda r: _dot(_coefficients(r), features), default=None)
    graph = fit["graph"] if fit else any(r["graph"] for r in model if r["op"] == "all_reduce")
    calls = collectives(config, tp, batch, tokens, plan, itemsize, fit["path"] if fit else None)
    comm, found = communication_us(model, calls, tp, path, graph, fit["path"] if fit else None)
    compute = _dot(_coefficients(fit), features) if fit else None
    counts = defaultdict(int)
    for op, _, times in calls:
        counts[op] += times
    return {"us": None if fit is None else compute + comm, "compute_us": compute, "communication_us": comm,
            "communication_share": None if fit is None else comm / (compute + comm), "phase": phase,
            "rung": fit["path"] if fit else None, "graph": graph, "tp": tp, "batch": batch, "tokens": tokens,
            "context": context, "plan": plan, "collectives": dict(counts),
            "bytes_a_rank": sum(nbytes * times for _, nbytes, times in calls),
            "paths": {f["op"]: f["path"] for f in found}, "on_paper": any(f["on_paper"] for f in found)}


def _rungs(model: list[dict], phase: str, tp: int, batch: int, rung: str | None) -> list[dict]:
    """Each rung's fit for that batch. A rung that was recorded with one rank alone is nothing to go by for several."""
    fits = sorted((r for r in model if r["op"] == phase and r.get("from_batch", 1) <= batch
                   and rung in (None, r["path"])), key=lambda r: r.get("from_batch", 1))
    rungs = {r["path"]: r for r in fits if tp == 1 or r["world"] > 1}
    if rung and not rungs:
        known = sorted({r["path"] for r in model if r["op"] == phase})
        raise UserError(f"the model has {phase} of rung {rung!r} with one rank alone" if fits else
                        f"the model has no {phase} of rung {rung!r}; it has {', '.join(known) or 'none'}")
    return list(rungs.values())


def crossover(model: list[dict], config: GPT2Config, tp: int, tokens: int = 1, context: int = 0, **how) -> int | None:
    """The least batch, of the powers of two to 4096, at which `tp` ranks are predicted faster than one; None: never.
    """
    for batch in (2**i for i in range(13)):
        one, many = (forward(model, config, n, batch, tokens, context, **how)["us"] for n in (1, tp))
        if None not in (one, many) and many < one:
            return batch
    return None


def _coefficients(fit: dict) -> list[float]:
    """A fit's price of each of TERMS; one of before knows a single price of cache."""
    return [fit.get(term, fit["us_per_kv_byte"]) for term in TERMS]


def _dot(coefficients, features) -> float:
    return sum(c * f for c, f in zip(coefficients, features, strict=True))


def _us(name: str, row: dict) -> float:
    return row["us_per_step_median" if name == "decode" else "wall_us_median"]


def _config(name: str) -> GPT2Config | None:
    return FAMILY.get(name.removeprefix("random:"))

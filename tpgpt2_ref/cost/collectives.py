"""The summary table as a model that can be wrong: what a collective costs, fitted to measurements.

    t(bytes) = alpha + beta * bytes        a floor for each call, then bytes over bandwidth

in pieces, because a library changes its protocol with the size. Where between two fitted sizes it does is not known:
there a straight line joins the pieces, so that a jump is missed in part, not whole. Each (op, path, world, graph)
is fitted to every second size and judged on the sizes between, which it has never seen: its median and worst relative
error stand beside its parameters. A sample of the sweep is the mean of some calls in a row and pays once for starting:
ranks don't start at one instant. That share, start / calls, is fitted beside the pieces (one start for a whole sweep)
and is no part of alpha and beta, which price a call among others. The diagram's "1-5 us per element" has no such form:
see `per_element_us`.
Source of the form: Hockney 1994, "The communication challenge for MPP". Nothing here imports torch.
"""
from __future__ import annotations

import random
from collections import defaultdict
from itertools import combinations
from statistics import median, quantiles

from ..errors import UserError

MAX_PIECES = 4
# Squared relative errors that a further piece must save: about 14 % at one size. Chosen over many random halves of the
# recorded sizes; sizes that are held out in the shipped half were among them.
PIECE_COSTS = 0.02
STARTS = 16  # how many starts are tried
TIE = 1e-9  # of the squared error: no better than this is no better, and the earlier, simpler subset stays
FEWEST_SIZES = 6  # 3 to fit, 3 to judge


def fit_collectives(rows: list[dict], first: int = 0) -> list[dict]:
    """Rows of `collectives` -> rows of `cost_model`: one for each piece of each (op, path, world, graph).

    first  of the sizes in order, the first that is fitted: 1 swaps the sizes that are fitted and those that judge
    """
    groups = defaultdict(dict)
    for row in rows:
        groups[row["op"], row["path"], row["world"], row["graph"]][row["bytes"]] = row
    groups = {key: [found[n] for n in sorted(found)] for key, found in sorted(groups.items())
              if len(found) >= FEWEST_SIZES}
    if not groups:
        raise UserError(f"nothing to fit: each op and path needs at least {FEWEST_SIZES} sizes "
                        "(bench collectives without --sizes measures enough)")
    sweeps = defaultdict(list)  # what starts alike: as many ranks, in a graph or not
    for (*_, world, graph), found in groups.items():
        sweeps[world, graph].append(found[first::2])
    starts = {sweep: fit_start(halves) for sweep, halves in sweeps.items()}
    out = []
    for (op, path, world, graph), found in groups.items():
        start, half, judged = starts[world, graph], found[first::2], found[1 - first::2]
        pieces = fit_pieces(_points(half), [start / _calls(r) for r in half])
        errors = [abs((evaluate(pieces, r["bytes"]) + start / _calls(r)) / r["us_median"] - 1) for r in judged]
        own = [(r["us_p90"] - r["us_p10"]) / 2 / r["us_median"] for r in judged]
        out += [{"op": op, "path": path, "world": world, "graph": graph, **piece, "to_bytes": found[-1]["bytes"],
                 "start_us": start, **error_fields(errors), "heldout_median_spread": round(median(own), 4),
                 "heldout_worst_spread": round(own[errors.index(max(errors))], 4)} for piece in pieces]
    return out


def calls_in_a_row(nbytes: int, cuda: bool) -> int:
    """How many calls one sample of the sweep is the mean of."""
    return min(100, max(4, 2**26 // nbytes)) if cuda else min(10, max(1, 2**16 // nbytes))


def fit_start(paths: list[list[dict]]) -> float:
    """Microseconds that starting one sample takes: what leaves the least error to the pieces of all paths together."""
    most = min(r["us_median"] * _calls(r) for rows in paths for r in rows)  # no sample took less than its start

    def error(start):
        return sum(_best_pieces(_points(rows), [start / _calls(r) for r in rows])[0] for rows in paths)

    return min((most * i / STARTS for i in range(STARTS)), key=error)


def fit_pieces(points: list[tuple[int, float]], given: list[float] | None = None) -> list[dict]:
    """The alpha-beta pieces with the least squared relative error, a further piece costing PIECE_COSTS.

    points  (bytes, microseconds), by size
    given   microseconds of each that are no part of the call (default: none)
    """
    return _best_pieces(points, given or [0.0] * len(points))[1]


def _best_pieces(points, given) -> tuple[float, list[dict]]:
    sums = [(0.0,) * 6]  # over the first k points: what `_line` needs of any stretch is a difference of two
    for (n, us), g in zip(points, given, strict=True):
        a, b, y = 1 / us, n / us, 1 - g / us
        sums.append(tuple(s + x for s, x in zip(sums[-1], (a * a, a * b, b * b, a * y, b * y, y * y), strict=True)))
    best = {0: (0.0, [])}  # how many points are covered -> (error, pieces)
    for stop in range(2, len(points) + 1):
        choices = []
        for start in range(0, stop - 1):
            if start not in best or len(best[start][1]) == MAX_PIECES:
                continue
            error, alpha, beta = _line(*(x - y for x, y in zip(sums[stop], sums[start], strict=True)))
            piece = {"from_bytes": points[start][0], "until_bytes": points[stop - 1][0], "alpha_us": alpha,
                     "beta_us_per_byte": beta}
            choices.append((best[start][0] + error + PIECE_COSTS, [*best[start][1], piece]))
        if choices:
            best[stop] = min(choices, key=lambda c: c[0])
    return best[len(points)]


def _line(aa, ab, bb, ay, by, yy) -> tuple[float, float, float]:
    """(sum of squared errors, alpha, beta), none negative: `least_squares` of two terms, from its sums."""
    found = [(yy, 0.0, 0.0), (yy - max(ay, 0) ** 2 / aa, max(ay, 0) / aa, 0.0),
             (yy - max(by, 0) ** 2 / bb, 0.0, max(by, 0) / bb)]
    if det := aa * bb - ab * ab:
        alpha, beta = (ay * bb - by * ab) / det, (by * aa - ay * ab) / det
        if min(alpha, beta) >= 0:
            found.append((yy - alpha * ay - beta * by, alpha, beta))
    return min(found)


def _points(rows: list[dict]) -> list[tuple[int, float]]:
    return [(r["bytes"], r["us_median"]) for r in rows]


def _calls(row: dict) -> int:
    """A row's calls in a row; rows that don't say are of the first sweeps, gloo's on CPUs."""
    first = calls_in_a_row(row["bytes"], False) if "gloo" in row["path"] else min(100, max(1, 2**24 // row["bytes"]))
    return row.get("calls") or first


def evaluate(pieces: list[dict], nbytes: int) -> float:
    """Microseconds of one call among others: by the piece that holds the size (beyond all, the nearest), or, between
    two pieces, on the line from where one ends to where the next starts."""
    def at(piece, n):
        return piece["alpha_us"] + piece["beta_us_per_byte"] * n

    left = max((p for p in pieces if p["from_bytes"] <= nbytes), key=lambda p: p["from_bytes"], default=pieces[0])
    right = min((p for p in pieces if p["from_bytes"] > nbytes), key=lambda p: p["from_bytes"], default=left)
    low, high = left.get("until_bytes", right["from_bytes"]), right["from_bytes"]  # models of before don't say
    if not low < nbytes < high:
        return at(left, nbytes)
    return at(left, low) + (at(right, high) - at(left, low)) * (nbytes - low) / (high - low)


def predict(model: list[dict], op: str, nbytes: int, world: int, path: str | None = None, graph: bool = False) -> dict:
    """What one call costs, by the fastest path of the model or by the one named, and how good that path's fit was.

    A world that was not measured is put together on paper, as a ring would run it, and says so.
    """
    rows = [r for r in model if r["op"] == op and r["graph"] == graph and (path in (None, r["path"]))]
    if path is None:  # the machine's own links before those of the dial
        rows = [r for r in rows if not r["path"].startswith("bare ")]
        rows = [r for r in rows if "/" not in r["path"]] or rows
    if not rows:
        known = sorted({f"{r['op']} over {r['path']}{' in a graph' if r['graph'] else ''}" for r in model
                        if "to_bytes" in r and not r["path"].startswith("bare ")})
        raise UserError(f"the model has no {op}{f' over {path}' if path else ''}{' in a graph' if graph else ''}; "
                        f"it has {', '.join(known) or 'no collective: fit it with a collectives.json too'}")
    measured = max((r["world"] for r in rows if r["world"] <= world), default=min(r["world"] for r in rows))
    by_path = defaultdict(list)
    for r in rows:
        if r["world"] == measured:
            by_path[r["path"]].append(r)
    latency, bandwidth = ring_scale(op, measured, world)
    found = []
    for name, pieces in by_path.items():
        scaled = [{**p, "alpha_us": p["alpha_us"] * latency, "beta_us_per_byte": p["beta_us_per_byte"] * bandwidth}
                  for p in pieces]
        found.append({"us": evaluate(scaled, nbytes), "path": name, "op": op, "bytes": nbytes, "world": world,
                      "graph": graph, "measured_world": measured, "on_paper": measured != world,
                      "beyond_measured_sizes": not pieces[0]["from_bytes"] <= nbytes <= pieces[0]["to_bytes"],
                      **{k: pieces[0][k] for k in pieces[0] if k.startswith("heldout")}})
    return min(found, key=lambda f: f["us"])


def ring_scale(op: str, measured: int, world: int) -> tuple[float, float]:
    """How a ring's floor and its time a byte grow from one world to another, for bytes of one rank's input.

    Steps: n-1 (all-reduce twice that). Bytes a link: all_reduce 2(n-1)/n, reduce_scatter (n-1)/n, all_gather n-1,
    broadcast 1, of the input.
    """
    steps = (world - 1) / (measured - 1)
    share = steps * measured / world
    return steps, {"all_reduce": share, "reduce_scatter": share, "all_gather": steps, "broadcast": 1.0}[op]


def least_squares(features: list[tuple], us: list[float], given: list[float] | None = None):
    """(non-negative coefficients with the least sum of squared errors relative to us, that sum).

    given  a part of each time that is already explained (default: none)
    With so few terms every subset can be tried: a term that would come out negative is left out, and so is one that
    the others of the subset already tell.
    """
    import numpy as np  # to fit, not to predict: pages ask the model without it

    times = np.asarray(us, float)  # (rows,)
    rows = np.asarray(features, float) / times[:, None]  # (rows, terms)
    target = 1 - np.asarray(given or 0.0, float) / times
    scale = rows.max(0)  # (terms,) bytes and flops are many, layers few
    scale[scale == 0] = 1.0
    width = rows.shape[1]
    best, least = np.zeros(width), float(target @ target)
    for chosen in (list(c) for count in range(1, width + 1) for c in combinations(range(width), count)):
        part = rows[:, chosen] / scale[chosen]
        found, _, rank, _ = np.linalg.lstsq(part, target, rcond=1e-6)
        error = float(np.square(part @ found - target).sum())
        if rank == len(chosen) and found.min() >= 0 and error < least * (1 - TIE):
            best, least = np.zeros(width), error
            best[chosen] = found / scale[chosen]
    return tuple(best.tolist()), least


def error_fields(errors: list[float], draws: int = 2000) -> dict:
    """Held-out errors as a model's row states them: median with a 95 % bootstrap interval, and the worst."""
    dice = random.Random(0)
    medians = [median(dice.choices(errors, k=len(errors))) for _ in range(draws)]
    cuts = quantiles(medians, n=40)
    return {"heldout_median_error": round(median(errors), 4), "heldout_median_error_low": round(cuts[0], 4),
            "heldout_median_error_high": round(cuts[-1], 4), "heldout_worst_error": round(max(errors), 4),
            "heldout_points": len(errors)}


def per_element_us(us: float, nbytes: int, itemsize: int = 2) -> float:
    """The diagram's unit: microseconds a call divided by elements."""
    return us / (nbytes / itemsize)

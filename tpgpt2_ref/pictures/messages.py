"""Pictures of what is said: the ring step by step, one-shot and push, a block's lanes, floor and slope, a roof."""
from __future__ import annotations

from math import log10

from ..recorded import results
from . import svg
from .matrices import RANKS, block, caption


def ring_steps(n: int) -> list[tuple[str, list[list[int]], list[tuple[int, int]]]]:
    """A ring all-reduce: per step (what it is, summands[rank][chunk] before it, [(rank, chunk) that it sends on])."""
    have, steps = [[1] * n for _ in range(n)], []  # rank r begins with chunk r, and sends on what it has just got
    for k in range(2 * n - 2):
        kind = "reduce-scatter" if k < n - 1 else "all-gather"
        before, sent = [row[:] for row in have], [(rank, (rank - k) % n) for rank in range(n)]
        steps.append((f"{k + 1}: {kind}", before, sent))
        for rank, chunk in sent:
            to = (rank + 1) % n
            have[to][chunk] = before[rank][chunk] + (before[to][chunk] if k < n - 1 else 0)
    return [*steps, ("done", have, [])]


def ring(wide: bool) -> tuple[float, str]:
    n, across = 4, 4 if wide else 2
    w = svg.WIDE if wide else svg.NARROW
    panel, parts, steps = w / across, [], ring_steps(n)
    cell, high = (panel - 26) / n, 152
    for i, (title, have, sent) in enumerate(steps):
        x0, y0 = 6 + (i % across) * panel, 2 + (i // across) * high
        parts.append(svg.words(x0, y0 + 13, title, 12, bold=True))
        for rank in range(n):
            left = x0 + rank * cell
            parts.append(svg.rect(left, y0 + 20, cell - 4, 4, f"rank-{rank}", "", 2))
            for chunk in range(n):
                top = y0 + 28 + chunk * 27
                full, goes = have[rank][chunk] == n, (rank, chunk) in sent
                parts.append(svg.rect(left, top, cell - 4, 24, "computing", "moving" if goes else "line", 3,
                                      .14 * have[rank][chunk], thick=2 if goes else .8))
                parts.append(svg.words(left + cell / 2 - 2, top + 16.5, f"{have[rank][chunk]}", 12,
                                       "ink", "middle", bold=full))
            for r, chunk in sent:
                if r == rank:
                    top = y0 + 28 + chunk * 27 + 12
                    end = (left + cell + 1) if rank < n - 1 else left + cell + 6
                    parts.append(svg.arrow(left + cell - 9, top, end, top, "moving", 1.6))
    y = 4 + -(-len(steps) // across) * high
    more, said = caption(w, y, "Four ranks side by side, four chunks each; a number says how many ranks' values a "
                               "chunk has summed. Each rank sends one chunk to its right neighbour (the last to the "
                               f"first). After {n - 1} steps each rank has one whole sum; after {2 * n - 2} all have "
                               "all.")
    return y + more, "".join([*parts, said])


def sequence(x: float, y: float, w: float, title: str, steps: list[tuple], parts: list) -> float:
    """Two ranks' lifelines, and what passes between them: ("both", text) do it, ("cross", text), ("wait", "")."""
    lanes = (x + w * .2, x + w * .8)
    parts.append(svg.words(x + w / 2, y + 14, title, 13, anchor="middle", bold=True))
    for rank, at in enumerate(lanes):
        parts.append(svg.rect(at - 30, y + 22, 60, 20, RANKS[rank], RANKS[rank], 4, .35))
        parts.append(svg.words(at, y + 36.5, f"rank {rank}", 12, anchor="middle", bold=True))
    top = y + 42
    at_y, drawn = top, []
    for kind, text in steps:
        if kind == "both":
            at_y += 12
            for r, at in enumerate(lanes):
                drawn += [svg.rect(at - w * .19, at_y, w * .38, 24, "ground", "", 4),
                          svg.rect(at - w * .19, at_y, w * .38, 24, RANKS[r], RANKS[r], 4, .16),
                          svg.words(at, at_y + 16, text, 11.5, anchor="middle")]
            at_y += 24
        elif kind == "wait":
            at_y += 12
            for at in lanes:
                drawn += [svg.rect(at - 26, at_y, 52, 20, "ground", "", 4),
                          svg.rect(at - 26, at_y, 52, 20, "waiting", "waiting", 4, .35),
                          svg.words(at, at_y + 14, "waits", 11.5, anchor="middle")]
            at_y += 20
        else:  # cross
            at_y += 34
            slope = 16 if kind == "cross" else 0
            drawn += [svg.words(x + w / 2, at_y - 10, text, 11.5, "moving", "middle"),
                      svg.arrow(lanes[0] + 4, at_y - slope / 2, lanes[1] - 4, at_y + slope / 2, "moving"),
                      svg.arrow(lanes[1] - 4, at_y - slope / 2, lanes[0] + 4, at_y + slope / 2, "moving")]
            at_y += 8
    parts += [svg.line(at, top, at, at_y + 6, "line", 1) for at in lanes]
    parts += drawn
    return at_y + 16 - y


def one_shot_and_push(wide: bool) -> tuple[float, str]:
    w, parts = svg.WIDE if wide else svg.NARROW, []
    one = [("both", "fill own buffer"), ("cross", "“mine are there”"), ("wait", ""),
           ("cross", "read the other's"), ("cross", "values come back"), ("both", "add"),
           ("cross", "“I have read”"), ("wait", "")]
    push = [("cross", "values, nothing else"), ("wait", ""), ("both", "not EMPTY? then add")]
    half = (w - 30) / 2 if wide else w - 8
    h = sequence(4, 0, half, "One-shot: the trip is made four times", one, parts)
    if wide:
        sequence(half + 26, 0, half, "Push: one trip", push, parts)
        y = h
    else:
        y = h + 8 + sequence(4, h + 8, half, "Push: one trip", push, parts)
    more, said = caption(w, y, "One-shot: write, say so, read, say so again; each magenta arrow is a trip over the "
                               "link. Push: values go straight into the other rank's memory, without a flag: any word "
                               "that is not EMPTY has arrived. Slots rotate: nobody has to say “I have "
                               "read”.")
    return y + more, "".join([*parts, said])


def two_shot_push(wide: bool) -> tuple[float, str]:
    """Who holds what in a two-shot push among four ranks: the parts that meet on a rank, and the sums that leave it."""
    n, w, parts = 4, svg.WIDE if wide else svg.NARROW, []
    panel = (w - 16) / 3 if wide else w - 8
    before = [[{rank} for _ in range(n)] for rank in range(n)]
    halfway = [[set(range(n)) if chunk == rank else {rank} for chunk in range(n)] for rank in range(n)]
    done = [[set(range(n)) for _ in range(n)] for _ in range(n)]
    first = {(rank, chunk) for rank in range(n) for chunk in range(n) if chunk != rank}
    second = {(rank, rank) for rank in range(n)}
    high, y = 236.0, 0.0
    for i, (title, held, sent) in enumerate((("Shot 1: block j to rank j", before, first),
                                             ("Shot 2: its sum to everybody", halfway, second), ("Done", done, set()))):
        x0, y0 = (4 + i * (panel + 4), 0.0) if wide else (4, i * (high + 4))
        parts.append(svg.words(x0, y0 + 15, title, 13, bold=True))
        cell = (panel - 62) / n
        for rank in range(n):
            top = y0 + 28 + rank * 50
            parts.append(svg.words(x0, top + 24, f"rank {rank}", 11.5, bold=True))
            for chunk in range(n):
                left, from_here = x0 + 50 + chunk * cell, held[rank][chunk]
                for j, part in enumerate(sorted(from_here)):
                    share = (cell - 4) / len(from_here)
                    parts.append(svg.rect(left + j * share, top, share, 38, f"rank-{part}", "", 0, .35))
                goes = (rank, chunk) in sent
                parts.append(svg.rect(left, top, cell - 4, 38, "", "moving" if goes else "line", 2,
                                      thick=2.2 if goes else .8))
                label = "Σ" if len(from_here) == n else f"→{chunk}" if goes else ""
                parts.append(svg.words(left + cell / 2 - 2, top + 23, label, 12, "ink", "middle", bold=True))
        y = y0 + high
    more, said = caption(w, y, "A row is a rank's memory, a column a block of the tensor, colours whose numbers are "
                               "in it. Outlined in magenta: what a rank writes into a peer's memory. A rank adds "
                               "a word as soon as all ranks' parts of it have come, and sends the sum on. Nobody waits "
                               "for a whole block, and nobody says that it is ready.")
    return y + more, "".join([*parts, said])


def rank_lanes(wide: bool) -> tuple[float, str]:
    """One transformer block of GPT-2 small at TP=2, both lanes and the two sums."""
    w = svg.WIDE if wide else svg.NARROW
    lane, y, parts = (w - 24) / 2, 2.0, []
    left = (8, 16 + lane)
    norm, part = ("LayerNorm", "(T, 768), the same on both"), "(T, 768), a part of the sum"
    rows = [norm, ("c_attn, by columns", "(T, 1152): 6 heads' q, k, v"), ("attention", "6 heads, own KV cache"),
            ("c_proj, by rows", part), None,
            norm, ("c_fc, by columns; GELU", "(T, 1536)"), ("c_proj, by rows", part), None]
    for rank in (0, 1):
        parts.append(svg.words(left[rank] + lane / 2, y + 14, f"rank {rank}", 13, anchor="middle", bold=True))
    y += 22
    for i, row in enumerate(rows):
        if row is None:
            parts.append(svg.rect(8, y, w - 16, 28, "moving", "", 4, .9))
            parts.append(svg.words(w / 2, y + 18.5, "all-reduce, then add the residual", fill="ground",
                                   anchor="middle", bold=True))
            y += 28
        else:
            for rank in (0, 1):
                parts.append(svg.rect(left[rank], y, lane, 42, RANKS[rank], RANKS[rank], 4, .14))
                at = left[rank] + lane / 2
                parts += [svg.words(at, y + 18, row[0], 12.5 if wide else 11.5, anchor="middle", bold=True),
                          svg.words(at, y + 34, row[1], 11 if wide else 10.5, "quiet", "middle")]
            y += 42
        if i < len(rows) - 1:
            parts += [svg.arrow(at + lane / 2, y + 1, at + lane / 2, y + 13) for at in left]
            y += 14
    more, said = caption(w, y + 4, "A lane is a rank's program: both are the same, with other halves of the weights. "
                                   "The two bars are all that the ranks say to each other in a block.")
    return y + 4 + more, "".join([*parts, said])


class Axes:
    """Two logarithmic axes in a box."""

    def __init__(self, x, y, w, h, across, up):
        self.box, self.across, self.up = (x, y, w, h), across, up

    def at(self, a: float, b: float) -> tuple[float, float]:
        x, y, w, h = self.box
        (a0, a1), (b0, b1) = self.across, self.up
        return (x + w * log10(a / a0) / log10(a1 / a0), y + h - h * log10(b / b0) / log10(b1 / b0))

    def frame(self) -> str:
        x, y, w, h = self.box
        return svg.line(x, y + h, x + w, y + h) + svg.line(x, y, x, y + h)


def floor_and_slope(wide: bool) -> tuple[float, str]:
    """Recorded all-reduces of two GPUs: the flat part and the rising part, on logarithmic axes."""
    w = svg.WIDE if wide else svg.NARROW
    run = results.load(results.BOOK_RESULTS / "2x-nvidia-h200" / "collectives.json")
    ways = {path: sorted((r["bytes"], r["us_median"]) for r in run.rows
                         if (r["op"], r["path"], r["graph"], r["world"]) == ("all_reduce", path, True, 2))
            for path in ("nccl", "push")}
    axes, parts = Axes(46, 22, w - 58, 238, (2 ** 8, 2 ** 30), (1, 10_000)), []
    parts.append(axes.frame())
    for us in (1, 10, 100, 1000, 10_000):
        x, y = axes.at(2 ** 8, us)
        parts += [svg.line(x, y, w - 12, y, "faint"), svg.words(x - 6, y + 4, f"{us:,}", 11, "quiet", "end")]
    for size, name in ((2 ** 10, "1 KiB"), (2 ** 20, "1 MiB"), (2 ** 30, "1 GiB")):
        x, y = axes.at(size, 1)
        parts.append(svg.words(x, y + 17, name, 11, "quiet", "middle" if size < 2 ** 30 else "end"))
    for size, name in ((1536, "1 token"), (49_152, "32 tokens"), (8 * 2 ** 20, "8 MiB")):
        x, y = axes.at(size, 1)
        parts += [svg.line(x, y, x, 24, "quiet", 1, "3 3"), svg.words(x + 3, 33, name, 11, "quiet")]
    for path, rows in ways.items():
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.at(*row) for row in rows if row[0] >= 2 ** 8))
        dash = "" if path == "nccl" else ' stroke-dasharray="7 4"'
        parts.append(f'<polyline points="{points}" fill="none" stroke="{svg.var("moving")}" stroke-width="2"{dash}/>')
        x, y = axes.at(*rows[len(rows) // 4])
        parts.append(svg.words(x, y - 7, {"nccl": "NCCL", "push": "push"}[path], 12, "moving", bold=True))
    parts.append(svg.words(axes.at(2 ** 30, 1)[0], axes.at(1, 4)[1], "slope: bytes / bandwidth", 12, "ink", "end"))
    parts.append(svg.words(52, axes.at(1, ways["nccl"][0][1])[1] - 22, "floor: what a call costs", 12))
    parts += [svg.words(4, 12, "µs a call", 11, "quiet"), svg.words(w - 12, 288, "bytes a rank", 11, "quiet", "end")]
    more, said = caption(w, 294, f"All-reduce between two GPUs, in a CUDA graph: {run.label}.")
    return 294 + more, "".join([*parts, said])


def roofline_idea(wide: bool) -> tuple[float, str]:
    w, parts = svg.WIDE if wide else svg.NARROW, []
    axes = Axes(30, 22, w - 44, 212, (.25, 4096), (.25, 400))
    ridge = 100.0
    start, knee, end = axes.at(.25, .25), axes.at(ridge, ridge), axes.at(4096, ridge)
    parts += [axes.frame(), svg.line(*start, *knee, "computing", 2.4), svg.line(*knee, *end, "computing", 2.4)]
    parts += [svg.line(*knee, knee[0], start[1], "quiet", 1, "3 3")]
    parts.append(svg.words(knee[0] - 10, start[1] + 16, "waits for memory", 12, "ink", "end"))
    parts.append(svg.words(knee[0] + 10, start[1] + 16, "computes", 12))
    parts.append(svg.words(end[0], end[1] - 8, "the cores' peak", 12, "ink", "end"))
    parts.append(svg.words(40, axes.at(1, 18)[1], "memory's bytes/s", 12))
    for intensity, reached, name in ((1, .62, "attention, decode"), (40, 24, "a layer, batch 32"),
                                     (900, 70, "prefill")):
        x, y = axes.at(intensity, reached)
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{svg.var("ink")}"/>',
                  svg.words(x + 9, y + 5, name, 12)]
    parts += [svg.words(4, 12, "FLOP/s reached", 11, "quiet"),
              svg.words(w - 14, 268, "FLOP per byte read", 11, "quiet", "end")]
    more, said = caption(w, 276, "A sketch, not a measurement. A kernel that does few operations per byte can't be "
                                 "faster than memory delivers; with many it can't be faster than the cores. Decode "
                                 "reads a whole cache for one token: it stands far to the left.")
    return 276 + more, "".join([*parts, said])


__all__ = ["block", "floor_and_slope", "one_shot_and_push", "rank_lanes", "ring", "roofline_idea", "two_shot_push"]

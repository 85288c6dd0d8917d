"""Cluster kernels of a decode step: who holds what, and who waits for whom; the slots between two kernels."""
from __future__ import annotations

from . import svg
from .matrices import RANKS, caption

BLOCKS, GROUPS = 8, 16  # of a cluster; of 4 tokens, as drawn
# (what a block makes, how much of it, which bars), or what is sent to whom; the last one leads to the slot
ATTENTION = (
    ("1  x: each adds up its eighth of all slots", "an eighth", 1),
    "to all 8: each has all of x",
    ("2  q, k, v: each finds 8 of the head's 64", "an eighth", 3),
    "to all 8: each has this head's q, k and v",
    ("3  attention: every eighth group of 4 tokens", "groups", 1),
    "parts to all 8: each joins them to one softmax",
    ("4  c_proj: each an eighth of the D outputs", "an eighth", 1),
    "slot of this head: its part of x, D wide",
)
MLP = (
    ("1  x: each adds up its eighth of all slots", "an eighth", 1),
    "to all 8: each has all of x",
    ("2  c_fc, GELU: each 32 of 256 hidden units", "an eighth", 1),
    "",
    ("3  c_proj: all D outputs, of its 32 units alone", "part", 1),
    "each eighth to the block that owns it",
    ("4  the owner adds 8 parts, in order", "an eighth", 1),
    "slot of this cluster: its part of x, D wide",
)
SHARES = {"an eighth": lambda r: [(r / BLOCKS, 1 / BLOCKS, .85)], "part": lambda r: [(0, 1, .3)],
          "groups": lambda r: [((r + i * BLOCKS) / GROUPS, 1 / GROUPS, .85) for i in range(GROUPS // BLOCKS)]}


def cluster_phases(wide: bool) -> tuple[float, str]:
    """Both kernels of a layer, a cluster of each: eight blocks side by side, steps from top to bottom."""
    w, parts = svg.WIDE if wide else svg.NARROW, []
    panel = (w - 20) / 2 if wide else w - 4
    high = _cluster(2, 0, panel, "Attention: a cluster a head", ATTENTION, parts)
    second = (panel + 18, 0) if wide else (2, high + 14)
    y = second[1] + _cluster(*second, panel, "MLP: a cluster for 256 hidden units", MLP, parts)
    more, said = caption(w, max(y, high) + 4, "A column is a block, a bar a vector: filled is what the block has made "
                                              "of it, pale a part of a sum. Magenta: stores into other blocks' shared "
                                              "memory. Each block waits there until all bytes have come; no kernel "
                                              "ends.")
    return max(y, high) + 4 + more, "".join([*parts, said])


def _cluster(x: float, y: float, w: float, title: str, steps: tuple, parts: list) -> float:
    """One kernel's cluster at (x, y); its height."""
    each, top = w / BLOCKS, y
    parts.append(svg.words(x + 2, y + 14, title, 13, bold=True))
    y += 22
    for r in range(BLOCKS):
        parts.append(svg.words(x + (r + .5) * each, y + 11, f"{r}", 11, "quiet", "middle"))
    y += 17
    for k, step in enumerate(steps):
        if isinstance(step, tuple):
            text, share, bars = step
            parts.append(svg.words(x + 2, y + 14, text, 12))
            high = 9.0 * bars + 5
            for r in range(BLOCKS):
                left = x + r * each + 1.5
                parts.append(svg.rect(left, y + 20, each - 3, high, "ground", "line", 3, thick=.8))
                for b in range(bars):
                    at, room = y + 23 + 9 * b, each - 9
                    parts.append(svg.rect(left + 3, at, room, 7, "faint", "", 1))
                    parts += [svg.rect(left + 3 + room * start, at, room * part, 7, "computing", "", 1, tint)
                              for start, part, tint in SHARES[share](r)]
            y += 24 + high
        elif not step:
            parts.append(svg.words(x + w / 2, y + 15, "nothing is sent", 11.5, "quiet", "middle"))
            y += 24
        else:
            last = k == len(steps) - 1
            for r in range(BLOCKS):
                parts.append(svg.arrow(x + (r + .5) * each, y - 1, x + (r + .5) * each, y + 9, "moving", 1.1))
            fill, tint, ink = ("computing", .3, "ink") if last else ("moving", .9, "ground")
            parts.append(svg.rect(x, y + 10, w, 21, fill, "moving" if last else "", 4, tint))
            parts.append(svg.words(x + w / 2, y + 24.5, step, 11.5, ink, "middle", bold=True))
            y += 36
    return y - top


def cluster_slots(wide: bool) -> tuple[float, str]:
    """A layer of GPT-2 small between its kernels: 12 clusters write 12 slots, on one GPU and on two."""
    w, parts = svg.WIDE if wide else svg.NARROW, []
    panel = (w - 20) / 2 if wide else w - 4
    high = _between(2, 0, panel, "One GPU: the next kernel waits for the end of this one", 1, parts)
    second = (panel + 18, 0) if wide else (2, high + 14)
    y = second[1] + _between(*second, panel, "Two GPUs: a flag beside each value says that it is there", 2, parts)
    more, said = caption(w, max(y, high) + 4, "GPT-2 small, a layer. A cluster writes its part of the residual stream "
                                              "into its own slot, on every GPU. Every cluster of the next kernel adds "
                                              "all slots, in order: the same numbers, so the same bits. On two GPUs "
                                              "this is the sum over the ranks too.")
    return max(y, high) + 4 + more, "".join([*parts, said])


def _between(x: float, y: float, w: float, title: str, ranks: int, parts: list) -> float:
    """Clusters of attention, slots, clusters of the MLP, slots; its height."""
    slots, top, room = 12, y, 44.0
    each = (w - room) / slots
    for i, line in enumerate(svg.wrapped(title, w - 4, 12.5, bold=True)):
        parts.append(svg.words(x + 2, y + 14 + 16 * i, line, 12.5, bold=True))
    y += 42

    def owner(i: int) -> str:
        return RANKS[i * ranks // slots] if ranks > 1 else "computing"

    for kernel, unit in (("attention", "head"), ("MLP", "slice")):
        parts.append(svg.words(x + 2, y + 9, f"{kernel}: a cluster a {unit}", 11.5, "quiet"))
        y += 15
        for i in range(slots):
            left = x + room + i * each
            parts.append(svg.rect(left + 1, y, each - 2, 24, owner(i), owner(i), 4, .3))
            parts.append(svg.words(left + each / 2, y + 16, f"{i}", 11, anchor="middle"))
            parts.append(svg.arrow(left + each / 2, y + 25, left + each / 2, y + 39, "moving", 1.1))
        y += 40
        for rank in range(ranks):
            parts.append(svg.words(x + 2, y + 13, "slots" if ranks == 1 else f"GPU {rank}", 11.5, "quiet"))
            parts += [svg.rect(x + room + i * each + 1, y, each - 2, 18, owner(i), "moving", 1, .6, thick=1)
                      for i in range(slots)]
            y += 22
        parts.append(svg.arrow(x + room + (w - room) / 2, y, x + room + (w - room) / 2, y + 12, "line"))
        said = "every cluster adds all 12, in order"
        parts.append(svg.rect(x + room, y + 13, w - room, 21, "faint", "line", 4, .7))
        parts.append(svg.words(x + room + (w - room) / 2, y + 27.5, said, 11.5, anchor="middle"))
        if kernel == "attention":
            parts.append(svg.arrow(x + room + (w - room) / 2, y + 35, x + room + (w - room) / 2, y + 47, "line"))
        y += 52 if kernel == "attention" else 38
    return y - top

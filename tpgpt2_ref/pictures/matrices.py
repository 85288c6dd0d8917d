"""Pictures of what is cut: block matrices, the 36 head stripes, the MLP's pair, the pages of a cache."""
from __future__ import annotations

from . import svg

RANKS = ("rank-0", "rank-1")


def block(x: float, y: float, w: float, h: float, text: str, colour: str = "computing", dash: str = "") -> str:
    """A matrix, or a part of one, with its name in it; long names get smaller words."""
    size = min(13.0, 13.0 * (w - 4) / max(1.0, svg.width(text, 13)))
    return svg.rect(x, y, w, h, colour, colour, 3, .2, dash, 1.3) + svg.words(
        x + w / 2, y + h / 2 + 4.5, text, max(9.5, size), anchor="middle")


def sign(x: float, y: float, text: str) -> str:
    return svg.words(x, y + 5, text, 16, "quiet", "middle")


def caption(w: float, y: float, text: str) -> tuple[float, str]:
    """Words over the whole width: (their height, they)."""
    lines = svg.wrapped(text, w - 8)
    return 17.0 * len(lines) + 6, "".join(svg.words(4, y + 13 + 17 * i, part, fill="quiet")
                                          for i, part in enumerate(lines))


def block_matrices(wide: bool) -> tuple[float, str]:
    w, unit = (svg.WIDE, 1.35) if wide else (svg.NARROW, .64)
    side, thin, gap = 76 * unit, 76 * unit, 22 * unit + 6
    x, parts = 4.0, []
    y, said = caption(w, 0, "By columns: each rank multiplies the whole input with its own columns, and holds its own "
                            "columns of the result. Nothing is said.")
    parts.append(said)
    parts += [block(x, y, side, 96, "X"), sign(x + side + gap / 2, y + 48, "×")]
    x += side + gap
    parts += [block(x + i * thin, y, thin - 2, 96, f"A{'₁₂'[i]}", RANKS[i]) for i in (0, 1)]
    x += 2 * thin
    parts.append(sign(x + gap / 2, y + 48, "="))
    x += gap
    parts += [block(x + i * thin, y, thin - 2, 96, f"X A{'₁₂'[i]}", RANKS[i]) for i in (0, 1)]
    y += 112
    more, said = caption(w, y, "By rows: each rank multiplies its columns with its own rows. Both products have the "
                               "full shape, and neither is the result: their sum is. One all-reduce.")
    parts.append(said)
    x, y = 4.0, y + more
    parts += [block(x + i * side / 2, y, side / 2 - 2, 96, f"Y{'₁₂'[i]}", RANKS[i]) for i in (0, 1)]
    parts.append(sign(x + side + gap / 2, y + 48, "×"))
    x += side + gap
    parts += [block(x, y + i * 48, thin, 46, f"B{'₁₂'[i]}", RANKS[i]) for i in (0, 1)]
    x += thin
    parts.append(sign(x + gap / 2, y + 48, "="))
    x += gap
    parts += [block(x, y, thin, 96, "Y₁ B₁", RANKS[0]), sign(x + thin + gap / 2, y + 48, "+"),
              block(x + thin + gap, y, thin, 96, "Y₂ B₂", RANKS[1])]
    return y + 102, "".join(parts)


def head_stripes(wide: bool) -> tuple[float, str]:
    w, heads = (svg.WIDE if wide else svg.NARROW) - 8, 12
    each, y, parts = (w - 16) / (3 * heads), 4.0, []
    deals = (("By head: right", lambda part, head: head // (heads // 2)),
             ("The left and the right half: wrong", lambda part, head: (part * heads + head) // (3 * heads // 2)))
    for title, deal in deals:
        parts.append(svg.words(4, y + 13, title, 13, bold=True))
        y += 22
        held = {rank: [] for rank in (0, 1)}
        for part, letter in enumerate("qkv"):
            left = 4 + part * (heads * each + 8)
            parts.append(svg.words(left, y + 12, f"{letter}, {heads} heads" if wide else letter, 11.5, "quiet"))
            for head in range(heads):
                rank = deal(part, head)
                held[rank].append(letter)
                parts.append(svg.rect(left + head * each + .5, y + 17, each - 1.5, 40, RANKS[rank], "", 2, .5))
                if wide:
                    parts.append(svg.words(left + (head + .5) * each, y + 41, f"{head}", 10.5, "ink", "middle"))
        y += 62
        for rank in (0, 1):
            has = ", ".join(f"{held[rank].count(letter)} of {letter}" for letter in "qkv")
            whole = len({held[rank].count(letter) for letter in "qkv"}) == 1
            parts.append(svg.rect(4, y + 4, 12, 12, RANKS[rank], "", 2))
            parts.append(svg.words(22, y + 15, f"rank {rank}: {has}"))
            mark, colour = ("✓ whole heads", "right") if whole else ("✗ heads torn apart", "wrong")
            parts.append(svg.words(30 + svg.width(f"rank {rank}: {has}"), y + 15, mark, fill=colour))
            y += 19
        y += 14
    return y, "".join(parts)


def mlp_pair(wide: bool) -> tuple[float, str]:
    w = svg.WIDE if wide else svg.NARROW
    lane, y, parts = (w - 24) / 2, 4.0, []
    middle = [8 + lane / 2, 16 + lane * 1.5]
    parts.append(block(w / 2 - 70, y, 140, 28, "X, the same on both"))
    for m in middle:
        parts.append(svg.arrow(w / 2 + (m - w / 2) * .3, y + 30, m, y + 52))
    y += 54
    steps = [("{} = X A{}" if wide else "X A{}", "c_fc, by columns"), ("GELU", "each number by itself"),
             ("GELU(X A{}) B{}", "c_proj, by rows")]
    for k, (text, note) in enumerate(steps):
        for rank, m in enumerate(middle):
            n = "₁₂"[rank]
            said = text.replace("{} = ", f"H{n} = ").replace("{}", n)
            parts.append(block(m - lane / 2, y, lane, 32, said, RANKS[rank]))
            parts.append(svg.words(m, y + 46, note, 11, "quiet", "middle"))
            if k < 2:
                parts.append(svg.arrow(m, y + 50, m, y + 66, RANKS[rank]))
        y += 68 if k < 2 else 52
    for rank, m in enumerate(middle):
        parts.append(svg.arrow(m, y, m, y + 16, RANKS[rank]))
    parts.append(svg.rect(8, y + 17, w - 16, 30, "moving", "", 4, .9))
    parts.append(svg.words(w / 2, y + 37, "one all-reduce: add the two, on both ranks", fill="ground", anchor="middle",
                           bold=True))
    y += 56
    more, said = caption(w, y, "GELU works on each number alone, so each rank's columns need nobody. Were the first "
                               "layer cut by rows, each rank would hold a part of every sum, and GELU(a + b) is not "
                               "GELU(a) + GELU(b): a sum would be due before GELU, and another after.")
    return y + more, "".join([*parts, said])


def paged_cache(wide: bool) -> tuple[float, str]:
    """Two sequences, their block tables, and the blocks of one cache: block size 4 for the picture."""
    w, size = (svg.WIDE if wide else svg.NARROW), 4
    tables = {"A": (10, (5, 1, 6)), "B": (6, (3, 0))}  # sequence: (tokens, its blocks in order)
    owner = {b: (name, i) for name, (_, blocks) in tables.items() for i, b in enumerate(blocks)}
    look = {"A": ("computing", .42, ""), "B": ("computing", .2, "4 3")}
    cell, parts, y, place = (w - 20) / 8, [], 4.0, {}
    x = 6.0
    for name, (tokens, blocks) in tables.items():
        fill, tint, dash = look[name]
        parts.append(svg.words(x, y + 13, f"{name}: {tokens} tokens", 12.5, bold=True))
        for i, b in enumerate(blocks):
            parts.append(svg.rect(x + i * cell, y + 20, cell - 4, 26, fill, "line", 3, tint, dash))
            parts.append(svg.words(x + i * cell + cell / 2 - 2, y + 38, f"{b}", 12.5, anchor="middle", mono=True))
            place[b] = (x + i * cell + cell / 2 - 2, y + 47)
        x += cell * 4
    if wide:
        parts.append(svg.words(x - cell * 1.6, y + 38, "block tables", 11.5, "quiet"))
    y += 118
    for b in range(8):
        left = 6 + b * cell
        name, i = owner.get(b, ("", 0))
        fill, tint, dash = look.get(name, ("", 1, "2 3"))
        if name:
            used = min(size, tables[name][0] - i * size)
            slot = (cell - 6) / size
            parts.append(svg.rect(left, y, cell - 4, 34, "", "line", 3, dash=dash))
            parts += [svg.rect(left + 1 + k * slot, y + 2, slot - 1, 30, fill, "", 1, tint) for k in range(used)]
            parts.append(svg.arrow(*place[b], left + cell / 2 - 2, y - 2, "quiet", 1.1))
        else:
            parts.append(svg.rect(left, y, cell - 4, 34, "", "line", 3, dash=dash))
        parts.append(svg.words(left + cell / 2 - 2, y + 50, f"{b}", 11.5, "quiet", "middle", mono=True))
    y += 58
    more, said = caption(w, y, f"A cache of 8 blocks of {size} tokens. A sequence takes blocks as it grows, in any "
                               "order; its table says which. Only the last block of a sequence has empty slots. Each "
                               "rank has such a cache for its own heads, and the tables are the same on all.")
    return y + more, "".join([*parts, said])

"""The teaching pictures by name: {name: (title, description, draw(wide) -> (height, inside))}; and the book's map."""
from __future__ import annotations

from pathlib import Path

from . import clusters, hidden, matrices, messages, svg

BOOK = Path(__file__).parents[2] / "book"
# page: (its number or name, its question)
PAGES = {
    "quickstart": ("Quickstart", "Does it run here?"), "why_split": ("Why split", "Why may a matrix be cut?"),
    "backend_selection": ("Diagram 1", "Which kernel runs?"), "qkv_split": ("Diagram 2", "Who holds what?"),
    "collectives": ("Diagram 3", "What must be said?"), "timeline": ("Diagram 4", "Where does the time go?"),
    "decision_matrix": ("Diagram 5", "What can each kernel do?"), "links": ("Diagram 6", "What is a link worth?"),
    "cost_analysis": ("The cost table", "Does a second GPU pay?"), "decode": ("Decode", "What is a token made of?"),
    "clusters": ("Clusters", "Must a token wait so often?"),
    "push": ("Push", "How does one beat NCCL?"), "hangs": ("Hangs", "Why did it hang?"),
    "sabotage": ("Sabotage lab", "What is wrong with it?"), "ledger": ("Ledger", "Which claims hold?"),
}
RUNGS = (  # what the page gains on a machine that has it
    ("Two GPUs", "live: NCCL ranks, links, a second GPU's worth",
     ("collectives", "timeline", "links", "cost_analysis", "push")),
    ("One GPU", "live: the kernels of attention and of a decode step",
     ("backend_selection", "decision_matrix", "decode", "clusters")),
    ("A laptop", "live: ranks on the CPU; recorded: all that GPUs did",
     ("quickstart", "why_split", "qkv_split", "hangs", "sabotage", "ledger")),
)


def book_map(wide: bool) -> tuple[float, str]:
    """Pages by the least machine on which they are live; a page that is there is a link."""
    w, parts, y = svg.WIDE if wide else svg.NARROW, [], 2.0
    across = 3 if wide else 2
    for title, note, pages in RUNGS:
        rows = -(-len(pages) // across)
        high, each = 34 + rows * 54 + (0 if wide else 16), (w - 20) / across
        parts.append(svg.rect(1, y, w - 2, high, "faint", "line", 8, .3))
        parts.append(svg.words(12, y + 21, title, 14, bold=True))
        beside = (24 + svg.width(title, 14, bold=True), y + 21) if wide else (12, y + 38)
        parts.append(svg.words(*beside, note, 11.5, "quiet"))
        top = y + (32 if wide else 48)
        for i, page in enumerate(pages):
            name, question = PAGES[page]
            x, at = 11 + (i % across) * each, top + (i // across) * 54
            inside = (svg.rect(x, at, each - 8, 46, "ground", "computing", 5, 1)
                      + svg.words(x + 9, at + 19, name, bold=True)
                      + svg.words(x + 9, at + 36, question, 11.5 if wide else 10.5, "quiet"))
            there = [f"{page}{end}" for end in (".ipynb", ".md") if (BOOK / f"{page}{end}").exists()]
            parts.append(svg.link(there[0], f"{name}: {question}", inside) if there else inside)
        y += high + 10
    return y - 6, "".join(parts)


PICTURES = {
    "block-matrices": ("Cut by columns, then by rows: the second product needs one sum", (
        "Two products of block matrices. X times A, cut by columns into A1 and A2, gives X A1 on rank 0 and X A2 on "
        "rank 1. Y1 and Y2 times B, cut by rows into B1 and B2, gives Y1 B1 on rank 0 and Y2 B2 on rank 1, which are "
        "added."),
        matrices.block_matrices),
    "head-stripes": ("36 stripes: a rank needs q, k and v of the same heads", (
        "The fused matrix as 36 stripes: q, k and v of 12 heads each. Dealt by head, a rank gets 6 of q, 6 of k and 6 "
        "of v. Cut in the middle, rank 0 gets 12 of q and 6 of k, rank 1 gets 6 of k and 12 of v."),
        matrices.head_stripes),
    "mlp-pair": ("Column, GELU, row: one sum for two layers", (
        "Two lanes. Each rank multiplies the input with its columns, applies GELU to what it has, multiplies with its "
        "rows; then one all-reduce adds the two results."), matrices.mlp_pair),
    "paged-cache": ("A cache in pages: any block, in any order", (
        "Two sequences with block tables 5, 1, 6 and 3, 0, and arrows from each entry to a block of a cache of eight "
        "blocks. Two last slots of each sequence's last block are empty; three blocks are free."),
        matrices.paged_cache),
    "ring": ("A ring of four: six steps, each rank sends a quarter each time", (
        "Seven panels. In the first three steps each rank adds what it gets from its left neighbour to one chunk, "
        "until it has one whole sum; in the next three the whole sums go round."), messages.ring),
    "one-shot-and-push": ("Four trips over the link, or one", (
        "Two sequence charts between two ranks. One-shot: write own buffer, signal, wait, read the other's, add, "
        "signal again. Push: write values alone into the other's memory; any word that is not EMPTY has arrived; add."),
        messages.one_shot_and_push),
    "two-shot-push": ("Two shots among four ranks, pushed", (
        "Three states of four ranks' memory, four blocks each. First each rank holds its own numbers, and pushes block "
        "j to rank j. Then rank j holds the sum of block j, and pushes it to everybody. Then all hold all four sums."),
        messages.two_shot_push),
    "rank-lanes": ("One block on two ranks: two lanes, two sums", (
        "Two lanes side by side, rank 0 and rank 1: LayerNorm, c_attn by columns, attention over 6 heads, c_proj by "
        "rows, then an all-reduce over both; LayerNorm, c_fc with GELU, c_proj, and a second all-reduce."),
        messages.rank_lanes),
    "hidden-sums": ("Two halves in turn: one's sum under the other's products", (
        "Two charts of one rank. In one piece one lane alternates: attention, sum, MLP, sum. In two halves "
        "lanes A and B alternate in the same way, shifted: while A's sum runs, B computes, and while B's sum "
        "runs, A does. The second chart ends earlier."), hidden.hidden_sums),
    "cluster-phases": ("Two kernels a layer, a cluster of each: four steps, handed over in shared memory", (
        "Two charts of eight blocks. Attention, a cluster a head: each block adds up an eighth of x and sends it to "
        "all; finds 8 of 64 of q, k and v and sends them to all; attends to every eighth group of tokens and sends its "
        "part to all; finds an eighth of c_proj's outputs for the head's slot. MLP: an eighth of x to all; 32 hidden "
        "units, nothing sent; all outputs of these units, each eighth sent to its owner; the owner adds eight parts "
        "for the cluster's slot."), clusters.cluster_phases),
    "cluster-slots": ("Between two kernels x stands in slots, and whoever needs it adds them in order", (
        "One layer of GPT-2 small. On one GPU twelve clusters of attention write twelve slots, which each of the "
        "MLP's twelve clusters adds; these write twelve slots for the next layer. On two GPUs each rank has six "
        "clusters, and writes its six slots into both GPUs' memory; each GPU adds all twelve."),
        clusters.cluster_slots),
    "allreduce-floor-slope": ("A sum has a floor, and then a slope", (
        "Time of an all-reduce over its bytes, both logarithmic, for NCCL and for push on two H200. Both are flat up "
        "to tens of kilobytes, push far below NCCL; for megabytes the time grows with the bytes."),
        messages.floor_and_slope),
    "roofline-idea": ("A roof: memory to the left, cores to the right", (
        "Operations per second over operations per byte. A rising line, memory's bandwidth, meets a flat line, the "
        "cores' peak. Attention of decode is far left on the slope, prefill to the right under the flat line."),
        messages.roofline_idea),
    "book-map": ("The book, and what is live on your machine", (
        "Three rungs. With a laptop: quickstart, why split, Diagram 2, hangs, sabotage lab, ledger. With one GPU also "
        "Diagrams 1 and 5, decode and clusters. With two also Diagrams 3, 4 and 6, the cost table and push."),
        book_map),
}

"""Tile sizes of the decode kernels: `tiles.json` holds what `measure/tune_decode.py` found fastest on one H200.

They were found on GPT-2 small, whole and split over two and four ranks. Other shapes take those of the nearest one.
"""
from __future__ import annotations

import json
from math import log
from pathlib import Path

MEASURED = {tuple(map(int, f"{key}/1".split("/")[:2])): sizes  # "64" or "64/2": a batch, and the ranks if several
            for key, sizes in json.loads(Path(__file__).with_suffix(".json").read_text()).items()}
HEADS, D, INNER, VOCAB = 12, 768, 3072, 50304  # GPT-2 small's
ALL_WIDE = 32  # rows of x from which every product is `products.wide_kernel`'s
WARP = 3072  # elements of W in fp32 that a warp can hold in registers, and twice as many in 16 bits
PROGRAM = 65536  # elements of W that a program can hold in shared memory


def measured_for(batch: int) -> dict[int, dict]:
    """{ranks: sizes} measured at the batch nearest to this one, counted in doublings."""
    nearest = min((b for b, _ in MEASURED), key=lambda b: abs(b.bit_length() - batch.bit_length()))
    return {ranks: sizes for (b, ranks), sizes in MEASURED.items() if b == nearest}


def attention_tile(batch: int, heads: int) -> dict:
    """The tile of `attention` for a rank with so many heads: of the nearest measured in sequences times heads."""
    nearest = min(MEASURED, key=lambda of: abs(log(batch * heads * of[1] / (of[0] * HEADS))))
    return dict(MEASURED[nearest]["attention"])


def tile_for(then: str, batch: int, n: int, k: int) -> dict:
    """The tile of a product with W (n, k): as measured, or smaller where a larger model would not fit."""
    shapes = {"qkv": {"qkv": 3 * D * D}, "gelu": {"gelu": INNER * D}, "best": {"best": VOCAB * D}}
    kinds = shapes.get(then, {"add": D * D, "long": D * INNER})
    found = [(abs(log(n * k * ranks / size)), kind, sizes[kind]) for ranks, sizes in measured_for(batch).items()
             for kind, size in kinds.items() if kind in sizes]
    _, kind, tile = min(found, key=lambda f: f[0])
    tile = dict(tile)
    if "DEPTH" not in tile:  # gemv
        held = tile["num_warps"] * WARP * (1 if kind in ("qkv", "gelu") else 2)
        while tile["ROWS"] > 1 and tile["ROWS"] * k > held:
            tile["ROWS"] //= 2
    elif "SLICES" in tile:
        while tile["ROWS"] > 16 and tile["ROWS"] * k > tile["num_warps"] * 2 * WARP:
            tile["ROWS"] //= 2
        if tile["ROWS"] * k > PROGRAM:
            tile = dict(ROWS=32, B=16, DEPTH=256, STAGES=3, SPLITS=6, num_warps=4)  # nearly as fast in GPT-2 small
    return tile

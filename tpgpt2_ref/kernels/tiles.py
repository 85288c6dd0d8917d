"""Tile sizes of the decode kernels: `tiles.json` holds what `bench/tune.py` found fastest on one H200.

They were found on GPT-2 small, whole and split over ranks, and some on GPT-2 XL. Other shapes take the nearest one's.
"""
from __future__ import annotations

from math import log
from pathlib import Path

from ..files import read_json

D, HEAD, VOCAB = 768, 64, 50304  # GPT-2 small's
ALL_WIDE = 32  # rows of x from which every product is `products.wide_kernel`'s
WARP = 3072  # elements of W in fp32 that a warp can hold in registers, and twice as many in 16 bits
PROGRAM = 65536  # elements of W that a program can hold in shared memory


def shape(key: str) -> tuple[int, int, int]:
    """"64", "64/2" or "64/2/1600" -> (batch, ranks, width of the model); one rank, GPT-2 small's width unless said."""
    batch, ranks, width = (*map(int, key.split("/")), *(1, D)[key.count("/"):])
    return batch, ranks, width


MEASURED = {shape(key): sizes for key, sizes in read_json(Path(__file__).with_suffix(".json")).items()}


def size_of(kind: str, ranks: int, width: int) -> tuple[int, int]:
    """(n, k) of W on one of so many ranks of a model so wide."""
    return {"qkv": (3 * width // ranks, width), "gelu": (4 * width // ranks, width), "add": (width, width // ranks),
            "long": (width, 4 * width // ranks), "best": (VOCAB // ranks, width)}[kind]


def attention_tile(batch: int, heads: int) -> dict:
    """The tile of `attention` for a rank with so many heads: of the nearest measured in sequences times heads.

    Of several as near, that of the nearest batch.
    """
    found = [(round(abs(log(batch * heads * ranks * HEAD / (b * width))), 9), abs(log(batch / b)), tiles["attention"])
             for (b, ranks, width), tiles in MEASURED.items() if "attention" in tiles]
    return dict(min(found, key=lambda f: f[:2])[2])


def tile_for(then: str, batch: int, n: int, k: int) -> dict:
    """The tile of a product with W (n, k), of the nearest batch, counted in doublings: its own where it was measured.

    Otherwise of the nearest size in GPT-2 small, or a smaller tile where a larger model would not fit.
    """
    kinds, found = {"qkv": ("qkv",), "gelu": ("gelu",), "best": ("best",)}.get(then, ("add", "long")), []
    for (b, ranks, width), tiles in MEASURED.items():
        for kind in tiles.keys() & kinds:
            n_there, k_there = size_of(kind, ranks, width)
            own = (n, k) == (n_there, k_there)
            if own or width == D:
                far = abs(b.bit_length() - batch.bit_length()), -b, abs(log(n * k / (n_there * k_there)))
                found.append((far, not own, kind, dict(tiles[kind])))
    _, other, kind, tile = min(found, key=lambda f: f[:3])
    if not other:
        return tile
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

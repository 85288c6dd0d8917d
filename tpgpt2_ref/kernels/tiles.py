"""Tile sizes of the decode kernels: `tiles.json` holds what `bench/tune.py` found fastest on one H200.

They were found on GPT-2 small, whole and split over ranks, and some on GPT-2 XL. Other shapes take the nearest one's.
A tile's class says which kernel takes it; its fields are what that kernel is compiled for.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from pathlib import Path

from ..files import read_json

D, HEAD, VOCAB = 768, 64, 50304  # GPT-2 small's
ALL_WIDE = 32  # rows of x from which every product is `products.wide`'s
WARP = 3072  # elements of W in fp32 that a warp can hold in registers, and twice as many in 16 bits
PROGRAM = 65536  # elements of W that a program can hold in shared memory


@dataclass(frozen=True)
class Gemv:
    """`products.gemv`: ROWS rows of W to a program, in registers."""

    ROWS: int
    num_warps: int

    def fitted(self, kind: str, k: int) -> Gemv:
        """This tile, or as many rows of k columns as registers hold, in fp32 where a LayerNorm scales them."""
        rows, held = self.ROWS, self.num_warps * WARP * (1 if kind in ("qkv", "gelu") else 2)
        while rows > 1 and rows * k > held:
            rows //= 2
        return replace(self, ROWS=rows)


@dataclass(frozen=True)
class Skinny:
    """`products.skinny`: ROWS rows of W and B of x to a program; a warp takes a slice of K, DEPTH columns at once."""

    ROWS: int
    B: int
    SLICES: int
    DEPTH: int
    num_warps: int

    def fitted(self, kind: str, k: int) -> Skinny | Wide:
        rows = self.ROWS
        while rows > 16 and rows * k > self.num_warps * 2 * WARP:
            rows //= 2
        if rows * k > PROGRAM:
            return Wide(ROWS=32, B=16, DEPTH=256, STAGES=3, SPLITS=6, num_warps=4)  # nearly as fast in GPT-2 small
        return replace(self, ROWS=rows)


@dataclass(frozen=True)
class Wide:
    """`products.wide`: ROWS rows of W and B of x, DEPTH columns of K at once, STAGES of them on their way.

    SPLITS programs share K.
    """

    ROWS: int
    B: int
    DEPTH: int
    STAGES: int
    SPLITS: int
    num_warps: int

    def fitted(self, kind: str, k: int) -> Wide:
        return self


@dataclass(frozen=True)
class Vector:
    """`decode_attention.vector_kernel`: a split of a sequence is one block of BLOCK tokens."""

    BLOCK: int
    num_warps: int


@dataclass(frozen=True)
class TensorCore:
    """`decode_attention.tensor_core_kernel`: a split is SPAN tokens, BLOCK at once, STAGES of them on their way."""

    BLOCK: int
    SPAN: int
    STAGES: int
    num_warps: int


TILES = {"gemv": Gemv, "skinny": Skinny, "wide": Wide, "vector": Vector, "tensor_core": TensorCore}


def from_json(kernel: str, **sizes: int):
    return TILES[kernel](**sizes)


def to_json(tile) -> dict:
    """{"kernel": its name, size: ...}"""
    return {"kernel": next(name for name, cls in TILES.items() if isinstance(tile, cls)), **vars(tile)}


def shape(key: str) -> tuple[int, int, int]:
    """"64", "64/2" or "64/2/1600" -> (batch, ranks, width of the model); one rank, GPT-2 small's width unless said."""
    batch, ranks, width = (*map(int, key.split("/")), *(1, D)[key.count("/"):])
    return batch, ranks, width


MEASURED = {shape(key): {kind: from_json(**tile) for kind, tile in sizes.items()}
            for key, sizes in read_json(Path(__file__).with_suffix(".json")).items()}


def size_of(kind: str, ranks: int, width: int) -> tuple[int, int]:
    """(n, k) of W on one of so many ranks of a model so wide."""
    return {"qkv": (3 * width // ranks, width), "gelu": (4 * width // ranks, width), "add": (width, width // ranks),
            "long": (width, 4 * width // ranks), "argmax": (VOCAB // ranks, width)}[kind]


def attention_tile(batch: int, heads: int) -> Vector | TensorCore:
    """The tile of `attention` for a rank with so many heads: of the nearest measured in sequences times heads.

    Of several as near, that of the nearest batch.
    """
    found = [(round(abs(log(batch * heads * ranks * HEAD / (b * width))), 9), abs(log(batch / b)), tiles["attention"])
             for (b, ranks, width), tiles in MEASURED.items() if "attention" in tiles]
    return min(found, key=lambda f: f[:2])[2]


def tile_for(kind: str, batch: int, n: int, k: int) -> Gemv | Skinny | Wide:
    """The tile of a product with W (n, k), of the nearest batch, counted in doublings: its own where it was measured.

    Otherwise of the nearest size in GPT-2 small, or a smaller tile where a larger model would not fit.
    kind  "qkv", "gelu", "argmax", or "add": a c_proj, attention's or the MLP's (which is "long")
    """
    kinds, found = {"add": ("add", "long")}.get(kind, (kind,)), []
    for (b, ranks, width), tiles in MEASURED.items():
        for name in tiles.keys() & kinds:
            n_there, k_there = size_of(name, ranks, width)
            own = (n, k) == (n_there, k_there)
            if own or width == D:
                far = abs(b.bit_length() - batch.bit_length()), -b, abs(log(n * k / (n_there * k_there)))
                found.append((far, not own, name, tiles[name]))
    _, other, name, tile = min(found, key=lambda f: f[:3])
    return tile.fitted(name, k) if other else tile

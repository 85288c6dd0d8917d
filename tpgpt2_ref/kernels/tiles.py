"""Tile sizes of the decode kernels: `tiles.json` holds what `measure/tune_decode.py` found fastest on one H200."""
from __future__ import annotations

import json
from pathlib import Path

MEASURED = {int(batch): sizes for batch, sizes in json.loads(Path(__file__).with_suffix(".json").read_text()).items()}
WARP = 3072  # elements of W in fp32 that a warp can hold in registers, and twice as many in 16 bits
PROGRAM = 65536  # elements of W that a program can hold in shared memory


def measured_for(batch: int) -> dict:
    """The sizes measured at the batch nearest to this one, counted in doublings."""
    return dict(MEASURED[min(MEASURED, key=lambda b: abs(b.bit_length() - batch.bit_length()))])


def tile_for(then: str, batch: int, k: int) -> dict:
    """The tile of a product with K = k: as measured on GPT-2 small, or smaller where a larger model would not fit."""
    kind = {"store": "add"}.get(then, then)
    tile = dict(measured_for(batch)["long" if kind == "add" and k > 2048 else kind])
    if "DEPTH" not in tile:  # gemv
        held = tile["num_warps"] * WARP * (1 if kind in ("qkv", "gelu") else 2)
        while tile["ROWS"] > 1 and tile["ROWS"] * k > held:
            tile["ROWS"] //= 2
    elif "SLICES" in tile and tile["ROWS"] * k > PROGRAM:
        tile = dict(ROWS=16, B=16, DEPTH=128, STAGES=4, SPLITS=4, num_warps=4)
    return tile

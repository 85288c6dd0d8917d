"""Which tile a product or an attention gets: one that fits, and the one that was measured."""
from __future__ import annotations

import pytest

from tpgpt2_ref.config import FAMILY
from tpgpt2_ref.kernels.tiles import ALL_WIDE, MEASURED, WARP, Gemv, Skinny, Wide, attention_tile, size_of, tile_for


def test_tiles_fit_every_model():
    """Any model, any number of ranks, any batch: a tile that registers or shared memory can hold."""
    for c in FAMILY.values():
        for ranks in (1, 2, 4, 8):
            local = -(-c.n_head // ranks) * c.head_size
            d = c.n_embd
            for then, n, k in (("qkv", 3 * local, d), ("gelu", c.inner // ranks, d),
                               ("argmax", c.vocab_size // ranks, d), ("add", d, local), ("add", d, c.inner // ranks)):
                for batch in (1, 2, 3, 4, 5, 8, 16, 17, 64, 256):
                    tile = tile_for(then, batch, n, k)
                    assert isinstance(tile, Wide) or batch < ALL_WIDE
                    if isinstance(tile, Skinny):
                        assert tile.ROWS * k * 2 <= 128 << 10
                        assert tile.ROWS * k <= max(16 * k, 2 * WARP * tile.num_warps)
                    elif isinstance(tile, Wide):
                        assert tile.STAGES * (tile.ROWS + tile.B) * tile.DEPTH * 2 <= 160 << 10
                    else:
                        assert isinstance(tile, Gemv)
                        assert batch < 5 and tile.ROWS * k <= max(k, 2 * WARP * tile.num_warps)
                    assert attention_tile(batch, local // c.head_size).BLOCK % 16 == 0


def test_measured_tiles_are_written_as_they_are_read():
    pytest.importorskip("triton")
    from tpgpt2_ref.bench.tune import CANDIDATES, FILE, as_json

    assert FILE.read_text() == as_json(MEASURED)
    assert CANDIDATES.keys() == {batch for batch, _, _ in MEASURED}
    assert all(CANDIDATES[batch].keys() >= sizes.keys() for (batch, _, _), sizes in MEASURED.items())


def test_a_measured_shape_gets_its_own_tile():
    """The nearest measured is the shape itself; a batch between two takes the nearer's, counted in doublings."""
    for (batch, ranks, width), sizes in MEASURED.items():
        for kind, tile in sizes.items():
            then = "add" if kind == "long" else kind
            if kind == "attention":
                assert attention_tile(batch, width // 64 // ranks) == tile
            else:
                assert tile_for(then, batch, *size_of(kind, ranks, width)) == tile
    assert tile_for("gelu", 12, 3072, 768) == MEASURED[8, 1, 768]["gelu"]
    assert tile_for("gelu", 200, 3072, 768) == MEASURED[64, 1, 768]["gelu"]

"""two_shot_push's kernel as Triton compiles it for Hopper, run thread by thread on the CPU, in random orders."""
from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")

from tpgpt2_ref.tests.ptx import Kernel, run  # noqa: E402
from tpgpt2_ref.tests.test_push_ptx import BLOCK, DTYPES, Ranks, compiled, decode, encode, numbers  # noqa: E402


def kernels(dtype: str, size: int, **more) -> list[Kernel]:
    return [Kernel(compiled("two_shot_push_all_reduce", dtype, rank, size, **more)) for rank in range(size)]


def sums(ranks: Ranks, kernels: list[Kernel], dtype: str, sent: list[np.ndarray], grids: list[int], seed: int):
    """Calls in a row, sent (size, numbers) each, by so many programs; -> every call's result by rank."""
    size, launches, calls = len(kernels), [[] for _ in kernels], []
    for x, grid in zip(sent, grids, strict=True):
        at = [ranks.memory.put(encode(part, dtype)) for part in x]
        vectors = -(-x.shape[1] * np.dtype(DTYPES[dtype]).itemsize // 16)
        rows = -(-vectors // (size * BLOCK))
        for rank in range(size):
            launches[rank].append(ranks.launch(rank, kernels[rank], at[rank], at[rank], vectors, rows,
                                               grid=min(grid, rows)))
        calls.append(at)
    run(launches, ranks.memory, seed, steps=1_000_000)
    return [[decode(ranks.memory.get(a, DTYPES[dtype], x.shape[1]), dtype) for a in at]
            for x, at in zip(sent, calls, strict=True)]


@pytest.mark.parametrize("dtype, size, scout", [("bf16", 2, False), ("fp32", 2, True), ("fp16", 3, False),
                                                ("bf16", 4, True), ("fp16", 8, True)])
def test_sums_in_every_order(dtype, size, scout):
    """Four calls: a full row, two rows of which one is short by two programs and by one, a single vector."""
    ranks, draw = Ranks(size), np.random.default_rng(size)
    per_row = size * BLOCK * 16 // np.dtype(DTYPES[dtype]).itemsize
    sent = [numbers(draw, size, n) for n in (per_row, 2 * per_row - 40, 8, 2 * per_row)]
    got = sums(ranks, kernels(dtype, size, SCOUT=scout), dtype, sent, [1, 2, 1, 1], seed=size)
    for x, of_ranks in zip(sent, got, strict=True):
        assert all(np.array_equal(y, x.sum(0)) for y in of_ranks)
    assert ranks.all_empty() and set(ranks.failed()) == {(0, 0)}

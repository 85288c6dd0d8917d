"""two_shot_push's kernel as Triton compiles it for Hopper, run thread by thread on the CPU, in random orders."""
from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")

from tpgpt2_ref.tests.ptx import Kernel, run  # noqa: E402
from tpgpt2_ref.tests.test_push_ptx import BLOCK, DTYPES, Ranks, compiled, decode, encode, numbers  # noqa: E402


def kernels(dtype: str, size: int) -> list[Kernel]:
    return [Kernel(compiled("two_shot_push_all_reduce", dtype, rank, size)) for rank in range(size)]


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


@pytest.mark.parametrize("dtype, size, rows", [("bf16", 2, (1, 2, 0, 2)), ("fp32", 3, (2, 1, 2)), ("fp16", 4, (2, 0)),
                                               ("bf16", 8, (0, 0))])
def test_sums_in_every_order(dtype, size, rows):
    """Calls in a row of so many rows (0: of one vector), each by another number of programs."""
    ranks, draw = Ranks(size), np.random.default_rng(size)
    vector = 16 // np.dtype(DTYPES[dtype]).itemsize
    sent = [numbers(draw, size, (n * size * BLOCK - 5) * vector if n else vector) for n in rows]
    got = sums(ranks, kernels(dtype, size), dtype, sent, [1, 2, 1, 1][: len(rows)], seed=size)
    for x, of_ranks in zip(sent, got, strict=True):
        assert all(np.array_equal(y, x.sum(0)) for y in of_ranks)
    assert ranks.all_empty() and set(ranks.failed()) == {(0, 0)}


def test_a_nan_that_looks_empty_comes_as_the_same_bits_everywhere():
    """All ones on rank 0: a NaN in each place that it sends, sums and collects, with the same bits on both ranks."""
    ranks = Ranks(2)
    at = [ranks.memory.put(np.full(8 * BLOCK, word, np.uint32)) for word in (0xFFFFFFFF, 0)]
    run([[ranks.launch(rank, kernel, a, a, 2 * BLOCK, 1)] for rank, (kernel, a) in
         enumerate(zip(kernels("fp32", 2), at, strict=True))], ranks.memory)
    first, second = (ranks.memory.get(a, np.uint32, 8 * BLOCK) for a in at)
    assert np.array_equal(first, second) and np.isnan(first.view(np.float32)).all()


def test_a_silent_peer_is_named_and_waited_for_once():
    ranks = Ranks(3, timeout=30_000)
    x = ranks.memory.put(np.ones(3 * 4 * BLOCK, np.float32))
    launch = ranks.launch(0, Kernel(compiled("two_shot_push_all_reduce", "fp32", 0, 3)), x, x, 3 * BLOCK, 1)
    run([[launch]], ranks.memory)
    assert ranks.failed()[0] in [(2, 2), (3, 3)]  # 1 + a rank that sent nothing
    before = ranks.memory.clock
    run([[launch]], ranks.memory)
    assert ranks.memory.clock - before < 15_000


def test_numbers_stay_in_registers():
    ptx = compiled("two_shot_push_all_reduce", "bf16", 0, 4)
    assert ".shared." not in ptx and "st.global.b16" not in ptx

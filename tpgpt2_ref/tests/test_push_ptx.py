"""push's kernels as Triton compiles them for Hopper, run thread by thread on the CPU (`ptx.py`), in random orders."""
from __future__ import annotations

from itertools import product

import numpy as np
import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tpgpt2_ref.parallel.all_reduce import push_kernels, two_shot_push_kernels  # noqa: E402
from tpgpt2_ref.tests.ptx import Kernel, Launch, Memory, run  # noqa: E402

ROWS, ROW_BYTES, BLOCK = 2, 512, 32  # a row is one warp's
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}
HEAD = {"push_all_reduce": ("x", "out", "vectors", "rows"), "push_all_gather": ("x", "out", "vectors", "rows"),
        "two_shot_push_all_reduce": ("x", "out", "vectors", "rows"),
        "push_add_norm": ("x", "bias", "residual", "weight", "bias_ln", "normed", "new_residual", "eps", "rows")}
TAIL = ("peers", "parity", "failed", "alarm", "timeout")
TYPES = {"vectors": "i32", "rows": "i32", "eps": "fp32", "peers": "*i64", "parity": "*i32", "failed": "*i32",
         "alarm": "*i32", "timeout": "i64"}


def compiled(name: str, dtype: str, rank: int, size: int, pdl=False, **more):
    constants = dict(RANK=rank, SIZE=size, ROWS=ROWS, ROW_BYTES=ROW_BYTES, BLOCK=BLOCK, PDL=pdl, **more)
    names = HEAD[name] + TAIL
    signature = {n: TYPES.get(n, f"*{dtype}") for n in names} | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"}
    kernels = two_shot_push_kernels if name.startswith("two_shot") else push_kernels
    source = ASTSource(fn=getattr(kernels, name), signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": BLOCK // 32}).asm["ptx"]


class Ranks:
    """Mailboxes in one memory, and the arguments with which each rank starts its kernels."""

    def __init__(self, size: int, timeout: int = 10**9):
        self.memory = Memory()
        empty = np.full(3 * size * ROWS * ROW_BYTES, 0xFF, np.uint8)  # two_shot_push's three slots
        self.boxes = [self.memory.put(empty) for _ in range(size)]
        peers = self.memory.put(np.array(self.boxes, np.int64))
        self.flags = [[self.memory.put(np.zeros(n, np.int32)) for n in (ROWS, 1, 1)] for _ in range(size)]
        self.tails = [[peers, *flags, timeout] for flags in self.flags]
        self.box_bytes = empty.nbytes

    def launch(self, rank: int, kernel: Kernel, *head, grid: int = 1) -> Launch:
        return Launch(kernel, [*head, *self.tails[rank], 0, 0], grid)  # Triton's own two pointers, unused

    def failed(self):
        return [tuple(int(self.memory.get(at, np.int32, 1)[0]) for at in flags[1:]) for flags in self.flags]

    def all_empty(self):
        return all((self.memory.get(box, np.uint8, self.box_bytes) == 0xFF).all() for box in self.boxes)


def encode(x: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as a kernel stores them; bf16 as its bits, which the numbers must fit."""
    if dtype == "bf16":
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(DTYPES[dtype])


def decode(x: np.ndarray, dtype: str) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else x.astype(np.float32)


def numbers(draw, *shape) -> np.ndarray:
    """Small whole numbers: sums of them are exact in every dtype."""
    return draw.integers(-8, 9, shape).astype(np.float32)


@pytest.mark.parametrize("size, dtype", [*product((2, 3, 4), DTYPES), (8, "bf16")])
def test_sums_in_every_order(dtype, size):
    """Four calls in a row, of one row and of two, the last one not full; every rank's threads in random order. Eight
    ranks, whose threads are many, sum a few vectors."""
    kernels = [Kernel(compiled("push_all_reduce", dtype, rank, size)) for rank in range(size)]
    ranks, draw = Ranks(size), np.random.default_rng(size)
    launches, calls = [[] for _ in range(size)], []
    for vectors in (BLOCK, 2 * BLOCK - 5, 1, 2 * BLOCK) if size < 8 else (5, 1, 2):
        count = vectors * 16 // np.dtype(DTYPES[dtype]).itemsize
        sent = numbers(draw, size, count)
        at = [ranks.memory.put(encode(x, dtype)) for x in sent]
        calls.append((count, sent, at))
        for rank in range(size):
            rows = -(-vectors // BLOCK)
            launches[rank].append(ranks.launch(rank, kernels[rank], at[rank], at[rank], vectors, rows, grid=rows))
    run(launches, ranks.memory, seed=size)
    for count, sent, at in calls:
        for rank in range(size):
            got = decode(ranks.memory.get(at[rank], DTYPES[dtype], count), dtype)
            assert np.array_equal(got, sent.sum(0))
    assert ranks.all_empty() and set(ranks.failed()) == {(0, 0)}


def test_one_program_may_have_several_rows():
    kernels, ranks = [Kernel(compiled("push_all_reduce", "fp32", rank, 2)) for rank in range(2)], Ranks(2)
    sent = numbers(np.random.default_rng(0), 2, 4 * 2 * BLOCK)
    at = [ranks.memory.put(x) for x in sent]
    run([[ranks.launch(r, kernels[r], at[r], at[r], 2 * BLOCK, 2)] for r in range(2)], ranks.memory)
    assert all(np.array_equal(ranks.memory.get(a, np.float32, 8 * BLOCK), sent.sum(0)) for a in at)


def test_the_word_that_means_empty_arrives_as_another():
    """All ones on rank 0: were it sent as it is, rank 1 would wait for ever."""
    kernels, ranks = [Kernel(compiled("push_all_gather", "fp32", rank, 2)) for rank in range(2)], Ranks(2)
    x = [ranks.memory.put(np.full(4, word, np.uint32)) for word in (0xFFFFFFFF, 7)]
    out = [ranks.memory.put(np.zeros(8, np.uint32)) for _ in range(2)]
    run([[ranks.launch(r, kernels[r], x[r], out[r], 1, 1)] for r in range(2)], ranks.memory)
    for at in out:
        assert ranks.memory.get(at, np.uint32, 8).tolist() == [0xFFFFFFFE] * 4 + [7] * 4


def test_a_silent_peer_is_named_and_waited_for_once():
    """Rank 0 of three runs alone, twice. What it sent lies in its peers' mailboxes and can be counted."""
    kernel, ranks = Kernel(compiled("push_all_reduce", "fp32", 0, 3)), Ranks(3, timeout=30_000)
    x = ranks.memory.put(np.ones(4 * BLOCK, np.float32))
    launch = ranks.launch(0, kernel, x, x, BLOCK, 1)
    run([[launch]], ranks.memory)
    assert ranks.failed()[0] in [(2, 2), (3, 3)]  # 1 + a rank that sent nothing
    for peer in (1, 2):
        assert int((ranks.memory.get(ranks.boxes[peer], np.int32, ranks.box_bytes // 4) != -1).sum()) * 4 == 16 * BLOCK
    before = ranks.memory.clock
    run([[launch]], ranks.memory)
    assert ranks.memory.clock - before < 10_000


@pytest.mark.parametrize("size", [2, 4, 8])
def test_gathers_in_every_order(size):
    """Two calls in a row of each rank's 64-bit keys, which are more than one row and end within a vector's line."""
    kernels = [Kernel(compiled("push_all_gather", "i64", rank, size)) for rank in range(size)]
    ranks, draw = Ranks(size), np.random.default_rng(size)
    launches, calls = [[] for _ in range(size)], []
    for vectors in (BLOCK + 3, 2) if size < 8 else (3, 2):
        sent = draw.integers(-(2**40), 2**40, (size, 2 * vectors))
        out = [ranks.memory.put(np.zeros(sent.size, np.int64)) for _ in range(size)]
        calls.append((sent, out))
        for rank in range(size):
            rows = -(-vectors // BLOCK)
            launches[rank].append(ranks.launch(rank, kernels[rank], ranks.memory.put(sent[rank]), out[rank], vectors,
                                               rows, grid=rows))
    run(launches, ranks.memory, seed=size)
    for sent, out in calls:
        whole = np.where(sent.view(np.uint32) == 0xFFFFFFFF, 0xFFFFFFFE, sent.view(np.uint32)).astype(np.uint32)
        for at in out:
            assert np.array_equal(ranks.memory.get(at, np.uint32, whole.size), whole.ravel())
    assert ranks.all_empty() and set(ranks.failed()) == {(0, 0)}


@pytest.mark.parametrize("dtype, size", [("bf16", 2), ("fp32", 2), ("bf16", 4), ("fp16", 4), ("bf16", 8)])
def test_fused_with_bias_residual_and_layer_norm(dtype, size):
    width = 64
    kernels = [Kernel(compiled("push_add_norm", dtype, rank, size, pdl=rank == 1, D=width)) for rank in range(size)]
    ranks, draw = Ranks(size), np.random.default_rng(0)
    partial, residual = numbers(draw, size, 2, width), numbers(draw, 2, width)
    bias, weight, shift = numbers(draw, 3, width)
    put = {n: ranks.memory.put(encode(v, dtype)) for n, v in
           dict(bias=bias, residual=residual, weight=weight, bias_ln=shift).items()}
    x = [ranks.memory.put(encode(p, dtype)) for p in partial]
    out = [[ranks.memory.put(encode(np.zeros((2, width)), dtype)) for _ in range(2)] for _ in range(size)]
    run([[ranks.launch(r, kernels[r], x[r], put["bias"], put["residual"], put["weight"], put["bias_ln"], *out[r], 1e-5,
                       2, grid=2)] for r in range(size)], ranks.memory)
    h = partial.sum(0) + bias + residual
    want = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5) * weight + shift
    for normed, new_residual in out:
        assert np.array_equal(decode(ranks.memory.get(new_residual, DTYPES[dtype], 2 * width), dtype), h.ravel())
        got = decode(ranks.memory.get(normed, DTYPES[dtype], 2 * width), dtype)
        assert np.allclose(got, want.ravel(), rtol={"bf16": 2**-8, "fp16": 2**-11, "fp32": 1e-5}[dtype], atol=1e-5)
    assert ranks.all_empty()


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_memory_is_read_and_written_16_bytes_at_a_time(dtype):
    ptx = compiled("push_all_reduce", dtype, 0, 2)
    assert "st.global.v4.b32" in ptx and "st.global.b16" not in ptx

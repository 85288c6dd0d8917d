"""Every attention backend against fp64: unequal lengths, scattered pages, prefill, prefill with context, and decode."""
from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from functools import partial
from statistics import median

import pytest
import torch

from tpgpt2_ref.attention.backends import flex_attention
from tpgpt2_ref.attention.matrix import FLASH_HEADS, MATRIX
from tpgpt2_ref.attention.selector import get_attn_backend, resolve
from tpgpt2_ref.bench import attention as bench_attention
from tpgpt2_ref.bench.attention_case import largest_error, make_case
from tpgpt2_ref.bench.attention_direct import DIRECT, direct
from tpgpt2_ref.commands.bench import attention as command
from tpgpt2_ref.engine import Engine
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.recorded import results
from tpgpt2_ref.tokenizer import ByteTokenizer
from tpgpt2_ref.weights import load_model

from .conftest import ROOT

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}
SIXTEEN_BITS = (torch.float16, torch.bfloat16)
LAYERS = [*zip(FLASH_HEADS, itertools.cycle(SIXTEEN_BITS)), (64, torch.float16)]  # GPT-2's own head in both
SHAPES = 200  # of each backend at least, over the layers that it takes
FEWER = 60  # of those that go from sequence to sequence, each a shape of its own for which cuDNN builds a graph
BY_HAND = [  # (new tokens, cached tokens) of each sequence
    ([1], [0]), ([1, 1], [15, 16]), ([1, 1, 1], [4, 100, 17]),
    ([5, 40, 1], [0, 0, 0]), ([130, 3, 77], [0, 0, 0]), ([5, 40, 1], [3, 20, 100]), ([60], [70]),
]


def bound(name, heads, head_size, dtype, **more):
    """The backend, or a skip with the selector's reasons."""
    try:
        return get_attn_backend(heads, head_size, dtype, force=name, **more).bind()(heads, head_size, dtype, **more)
    except UserError as e:
        pytest.skip(str(e))


def random_batch(rng: random.Random) -> tuple[list[int], list[int]]:
    """1 to 64 sequences of 1 to 1024 tokens: a first prefill, a prefill with context, or a decode step."""
    kind = rng.choice(("prefill", "prefill with context", "decode"))
    lengths = [min(1024, int(2 ** rng.uniform(0, 10.1))) for _ in range(int(2 ** rng.uniform(0, 6.1)))]
    new = {"prefill": lengths, "decode": [1] * len(lengths),
           "prefill with context": [rng.randint(1, n) for n in lengths]}[kind]
    return new, [n - t for n, t in zip(lengths, new, strict=True)]


@pytest.mark.gpu
@pytest.mark.parametrize("head_size, dtype", LAYERS, ids=str)
@pytest.mark.parametrize("name", [name for name, row in MATRIX.items() if row.implemented])
def test_random_shapes(name, head_size, dtype, monkeypatch):
    rng = random.Random(f"{name} {head_size} {dtype}")
    torch._dynamo.reset()
    # for lengths of any size at once, as a second length has it compiled anyway: the first one's own is tested below
    monkeypatch.setattr(flex_attention, "compiled", partial(flex_attention.compiled, dynamic=True))
    sizes = MATRIX[name].head_sizes
    taken = sum(sizes is None or size in sizes for size, _ in LAYERS)
    shapes = FEWER if issubclass(resolve(name), resolve("NAIVE")) else SHAPES
    own = rng.randint(1, 16)  # FlexAttention compiles anew for each number of heads: one a test, another in the next
    for i in range(-(-shapes // max(1, taken))):
        heads, (new, cached) = own if name == "FLEX_ATTENTION" else rng.randint(1, 16), random_batch(rng)
        backend = bound(name, heads, head_size, dtype)
        case = make_case(new, cached, heads, head_size, dtype, "cuda", seed=i)
        assert case.error(backend) < TOLERANCE[dtype], (heads, new, cached)


@pytest.mark.gpu
@pytest.mark.parametrize("name, head_size, dtype", [
    ("FLEX_ATTENTION", 16, torch.float32), ("FLEX_ATTENTION", 100, torch.float16),
    ("FLEX_ATTENTION", 512, torch.bfloat16),
    ("TRITON_ATTN", 40, torch.float16), ("TRITON_ATTN", 64, torch.float32), ("TRITON_ATTN", 256, torch.float32),
    ("XFORMERS", 40, torch.float16), ("XFORMERS", 248, torch.bfloat16), ("SDPA", 80, torch.float32),
], ids=str)
def test_layers_that_flash_attention_does_not_take(name, head_size, dtype):
    torch._dynamo.reset()
    # FlexAttention: a decode step, a prefill and a context, a kernel each; of one layer more, which compiles again
    shapes = BY_HAND[2:4] + BY_HAND[5:6] if name == "FLEX_ATTENTION" and head_size != 100 else BY_HAND
    for new, cached in shapes:
        case = make_case(new, cached, 3, head_size, dtype, "cuda")
        assert case.error(bound(name, 3, head_size, dtype)) < TOLERANCE[dtype], (new, cached)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n, row in MATRIX.items() if row.implemented and "fp8_e4m3" in row.cache_dtypes])
def test_fp8_cache(name):
    """Against fp64 over the same fp8 keys and values. FlashAttention-3 rounds the queries to fp8 too."""
    for new, cached in BY_HAND:
        backend = bound(name, 12, 64, torch.float16, cache_dtype="fp8_e4m3")
        case = make_case(new, cached, 12, 64, torch.float16, "cuda", cache_dtype="fp8_e4m3")
        assert case.error(backend) < (0.15 if name == "FLASH_ATTN_3" else 2e-3), (new, cached)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["FLASH_ATTN_3", "FLASH_ATTN_2", "FLEX_ATTENTION", "XFORMERS", "TRITON_ATTN"])
def test_decode_in_a_cuda_graph(name):
    """Captured once, then replayed on other lengths and other pages."""
    cases = [make_case([1] * 4, cached, 12, 64, torch.float16, "cuda", seed=i)
             for i, cached in enumerate(([300, 17, 0, 99], [299, 300, 1, 15]))]
    backend = bound(name, 12, 64, torch.float16)
    first, second = cases
    pages = max(c.kv_cache.shape[1] for c in cases)
    for c in cases:
        c.meta.max_seq_len = 1024  # an upper bound, as in a graph
        c.kv_cache = torch.nn.functional.pad(c.kv_cache, (0, 0, 0, 0, 0, 0, 0, pages - c.kv_cache.shape[1]))
        c.meta.block_table = torch.nn.functional.pad(c.meta.block_table, (0, 64 - c.meta.block_table.shape[1]))
    wanted = second.reference()
    first.run(backend)  # warm: compilation is not for capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = first.run(backend)
    for name in ("q", "kv_cache"):
        getattr(first, name).copy_(getattr(second, name))
    for name in ("seq_lens", "block_table", "slot_mapping"):
        getattr(first.meta, name).copy_(getattr(second.meta, name))
    for _ in range(2):  # twice: what a step leaves behind must not disturb the next
        graph.replay()
        assert largest_error(out, wanted) < 2e-3


@pytest.mark.gpu
@pytest.mark.parametrize("package", resolve("FLASH_ATTN_2").PACKAGES)
def test_each_build_of_flash_attention_2(package, monkeypatch):
    monkeypatch.setattr(resolve("FLASH_ATTN_2"), "PACKAGES", (package,))
    for new, cached in BY_HAND:
        for block_size in (16, 256):
            backend = bound("FLASH_ATTN_2", 12, 64, torch.float16, block_size=block_size)
            case = make_case(new, cached, 12, 64, torch.float16, "cuda", block_size)
            assert case.error(backend) < 2e-3, (new, cached, block_size)


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("new, cached", [(1024, 0), (1, 1023)], ids=["prefill", "decode"])
@pytest.mark.parametrize("name", [n for n in DIRECT if resolve(n).cuda_graphs])
def test_as_fast_as_its_package_called_directly(name, new, cached):
    layer = (12, 64, torch.float16)
    backend = bound(name, *layer)
    cases = [make_case([new] * 8, [cached] * 8, *layer, "cuda", seed=i) for i in range(bench_attention.LAYERS)]
    assert largest_error(cases[0].run(backend), direct(backend, cases[0])().double()) < TOLERANCE[torch.float16]
    for _ in range(2):  # once more, should something else have had the GPU
        ours, directly, graph = bench_attention.timed(backend, cases, 40)
        assert graph and directly
        if (ratio := median(ours) / median(directly)) <= 1.05:
            return
    pytest.fail(f"{ratio:.3f} of its package's time: {median(ours):.1f} us, directly {median(directly):.1f} us")


@pytest.mark.gpu
def test_greedy_text_is_the_same_through_every_backend():
    ids, texts = ByteTokenizer().encode("The module defines the following functions"), {}
    prompts = [ids[-n:] for n in (1, 5, 17, 40)]
    for name in MATRIX:
        try:
            model = load_model("tiny", World.single("cuda"), dtype="float16", backend=name)
        except UserError:  # test_random_shapes skips it with the reason
            continue
        texts[name] = Engine(model).generate(prompts, max_new_tokens=32)
    assert len(texts) >= 4 and all(t == texts["NAIVE"] for t in texts.values()), texts


@pytest.mark.parametrize("name", ["NAIVE", "SDPA", "FLEX_ATTENTION"])
def test_on_a_cpu(name):
    layers = itertools.cycle([(64, torch.float32), (80, torch.bfloat16)])  # each sees decode, prefill, and context
    for (new, cached), (head_size, dtype) in zip(BY_HAND, layers):
        backend = resolve(name)(3, head_size, dtype)
        case = make_case(new, cached, 3, head_size, dtype)
        assert case.error(backend) < 2 * TOLERANCE[dtype], (new, cached, dtype)


def test_sdpa_called_directly():
    backend = resolve("SDPA")(3, 64, torch.float32)
    for new, cached in BY_HAND:
        case = make_case(new, cached, 3, 64, torch.float32)
        call = direct(backend, case)
        assert (call is None) == (max(new) > 1 and any(cached))  # a prefill with context is not compared
        assert call is None or largest_error(case.run(backend), call().double()) < TOLERANCE[torch.float32]
    assert direct(resolve("NAIVE")(3, 64, torch.float32), case) is None


SMALL = [("prefill", 2, 24, 64, "float32"), ("decode", 2, 24, 64, "float32")]


def test_the_direct_call_is_recorded_beside_ours(tmp_path):
    rows = [row for row, _ in bench_attention.sweep(["SDPA", "NAIVE"], samples=3, shapes=SMALL)]
    assert [row.get("direct_us_median", 0) > 0 for row in rows] == [True, False] * 2
    assert results.load(results.save(results.Run("attention", results.machine_card(), rows), tmp_path)).rows == rows
    shown = command.show({"rows": rows, "missing": {}}).splitlines()
    ratio = f"{rows[0]['us_median'] / rows[0]['direct_us_median']:.2f}x"
    assert "direct" in shown[0] and ratio in shown[1].split() and "x" not in shown[2]


def test_a_direct_call_that_fails_does_not_lose_ours(monkeypatch):
    def fails(backend, case):
        raise TypeError("an argument of another release")

    monkeypatch.setattr(bench_attention, "direct", fails)
    with pytest.warns(UserWarning, match="SDPA: no direct call: TypeError: an argument"):
        (row, us), = bench_attention.sweep(["SDPA"], samples=3, shapes=SMALL[:1])
    assert row["us_median"] > 0 and len(us) == 3 and "direct_us_median" not in row


def test_triton_kernel_interpreted():
    """The kernel's arithmetic without a GPU, in a process of its own: Triton decides at import whether to interpret."""
    pytest.importorskip("triton")
    result = subprocess.run([sys.executable, "-m", "tpgpt2_ref.tests.test_backends"], capture_output=True, text=True,
                            cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, result.stderr


def interpreted() -> None:
    layers = itertools.cycle([(64, torch.float32, 16, "auto"), (40, torch.float16, 24, "fp8_e4m3")])
    for i, ((new, cached), (head_size, dtype, page, cache)) in enumerate(zip(BY_HAND, layers)):
        backend = resolve("TRITON_ATTN")(2, head_size, dtype, page, cache)
        case = make_case(new, cached, 2, head_size, dtype, "cpu", page, cache, seed=i)
        assert case.error(backend) < TOLERANCE[dtype], (new, cached, dtype)


if __name__ == "__main__":
    interpreted()

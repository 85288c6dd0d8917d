"""Every kernel of a decode step and of a prefill equals its plain twin.

On a GPU as compiled, with and without programmatic dependent launch; anywhere, by Triton's interpreter, small.
"""
from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from tpgpt2_ref.attention.kv_cache import allocate_kv_cache
from tpgpt2_ref.engine.decode_step import decode_step
from tpgpt2_ref.kernels import KERNELS, Kernels, plain
from tpgpt2_ref.kernels.state import DecodeState, Residual
from tpgpt2_ref.kernels.tiles import ALL_WIDE
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.weights import load_model

from .conftest import ROOT, on_ranks
from .kernel_cases import (
    Case,
    hold_equal,
    hold_far_rows_equal,
    hold_noise_equal,
    hold_prefill_equal,
    hold_split_equal,
    hold_steps_equal,
)

SHAPES = [  # each kind of tile in both: few rows, some, and tensor cores
    (1, 12, 64, 768, torch.float16), (4, 6, 64, 768, torch.bfloat16), (5, 6, 64, 768, torch.float16),
    (8, 12, 64, 768, torch.bfloat16), (33, 12, 64, 768, torch.float16), (64, 12, 64, 768, torch.bfloat16),
    (1, 13, 64, 1600, torch.bfloat16), (8, 13, 64, 1600, torch.float16), (3, 4, 16, 64, torch.float16),
    (16, 4, 16, 64, torch.bfloat16),
]


@pytest.mark.gpu
@pytest.mark.parametrize("batch, heads, head_size, width, dtype", SHAPES, ids=str)
def test_kernels_on_a_gpu(batch, heads, head_size, width, dtype):
    case = Case("cuda", dtype, batch, heads, head_size, width, length=1024)
    hopper = torch.cuda.get_device_capability() >= (9, 0)
    for pdl in (False, True)[: 1 + hopper]:
        hold_equal(case, Kernels.choose(pdl=pdl))
    hold_prefill_equal(case)
    hold_split_equal(case)


def interpreted(*argv, timeout=240):  # a minute on an idle core
    done = subprocess.run([sys.executable, "-m", __name__, *argv], cwd=ROOT, capture_output=True, text=True,
                          timeout=timeout, env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_interpreted():
    interpreted()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_two_ranks_interpreted():
    """Whole steps on two ranks over gloo, kernels by the interpreter, give the tokens of one rank in plain torch."""
    interpreted("two ranks", timeout=280)


def test_a_wrong_kernel_is_seen():
    """The comparison itself: a twin that forgets the bias, or the newest token, does not pass."""
    case = Case("cpu", torch.float32, 3, 2, 16, 64)
    hold_equal(case, Kernels.choose(()))
    for wrong in (dict(add=lambda x, linear, r, norm, state: Residual(r.x + x @ linear.weight.T, norm)),
                  dict(attention=lambda qkv, kv_cache, state: plain.attention(qkv, kv_cache.clone(), state)),
                  dict(head_argmax=lambda x, *more: plain.head_argmax(Residual(-x.x, x.norm), *more))):
        with pytest.raises(AssertionError):
            hold_equal(case, Kernels(**{name: wrong.get(name, getattr(plain, name)) for name in KERNELS}))


@torch.inference_mode()
def tokens_of_steps(world, batch: int, fused: tuple[str, ...]) -> torch.Tensor:
    model = load_model("tiny", world, dtype="float32")
    c, impl = model.config, model.impl
    state = DecodeState.empty(batch, impl.num_heads, c.n_positions, torch.device("cpu"))
    state.live.fill_(1)
    state.ids.copy_(torch.arange(batch) * 7 + 40)
    state.block_table[:, 0] = torch.arange(1, batch + 1)
    kv_caches = allocate_kv_cache(c.n_layer, batch + 1, 16, impl.num_heads, impl.head_size, torch.float32, "cpu")
    for _ in range(3):
        decode_step(model, kv_caches, state, Kernels.choose(fused))
    return state.tokens[:, 1:4].clone()


def hold_ranks_equal():
    """The tokens of tensor cores' kernels and of those for few rows: `TensorCore` and `Vector`, `Wide` and `Skinny`."""
    from tpgpt2_ref.tests import test_kernels as here  # by its name, under which other processes find it

    for batch in (3, ALL_WIDE + 1):
        want = tokens_of_steps(World.single(), batch, ())
        for got in on_ranks(2, here.tokens_of_steps, batch, KERNELS, timeout=200):
            assert torch.equal(got, want)


if __name__ == "__main__" and "two ranks" in sys.argv:
    hold_ranks_equal()
elif __name__ == "__main__":
    for shape in ((3, 2, 16, 48), (9, 2, 32, 64)):  # multiply-adds, and tensor cores
        small = Case("cpu", torch.float32, *shape, rows=48)
        hold_equal(small, Kernels.choose())
        hold_prefill_equal(small)
    hold_split_equal(small)
    hold_noise_equal(small)
    hold_far_rows_equal(Case("cpu", torch.float32, 3, 2, 16, 48, rows=48))
    with torch.inference_mode():
        for filtered in (False, True):
            hold_steps_equal(filtered)

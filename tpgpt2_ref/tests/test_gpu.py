"""The same ladder on GPUs: one GPU and NCCL ranks, against Hugging Face in fp32 and fp64.

Where there is one GPU, two NCCL ranks share it (TPGPT2_SHARE_GPU): that shows the code is right, not how fast.
"""
from __future__ import annotations

import numpy as np
import pytest
import torch

from tpgpt2_ref.engine import Engine, prompt_logits
from tpgpt2_ref.parallel.launch import gpu_count
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.weights import load_model

from .conftest import on_ranks
from .test_gpt2 import FAMILY, ODD, PROMPTS, TINY, greedy_of_hugging_face

SHARE = {"TPGPT2_SHARE_GPU": "1", "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1"} if gpu_count() == 1 else {}
LAYERS = {"gpt2": 3 if SHARE else 12, "gpt2-medium": 4, "gpt2-large": 4, "gpt2-xl": 4}  # shared: ranks take turns
# largest logit error against fp64, as a share of the largest logit: a few roundings of the dtype a layer
TOLERANCE = {"float16": 1e-2, "bfloat16": 6e-2}
HEAD_32 = dict(TINY, n_embd=128)  # the least head size that the fast kernels take


@pytest.fixture
def family(checkpoint):
    return lambda name: checkpoint(device="cuda", **dict(FAMILY[name], n_layer=LAYERS[name]))


def one_run(world, folder, dtype, plan, prompts, n):
    # fp32 goes through NAIVE: the kernels' own tests hold them to fp64, and some take tf32's liberties
    model = load_model(str(folder), world, plan, dtype, "NAIVE" if dtype == "float32" else None)
    engine = Engine(model)
    new = engine.generate(prompts, n)
    logits = prompt_logits(model, prompts[0]).cpu().numpy()
    return dict(new=new, logits=logits, moved=engine.first_forward, backend=model.impl.name, world=world.backend)


def hf_logits(hf, dtype=torch.float64):
    with torch.no_grad():
        logits = hf.to(dtype)(torch.tensor([PROMPTS[0]], device=hf.device)).logits[0].cpu().numpy()
    hf.float()
    return logits


def hold_near(got, want, dtype):
    error = np.abs(got["logits"] - want).max() / np.abs(want).max()
    print(f"{dtype} {got['backend']}: largest error {error:.1e} of the largest logit")
    assert error < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILY)
def test_one_gpu(family, name):
    folder, hf = family(name)
    got = one_run(World.single("cuda"), folder, "float32", "shipped", PROMPTS, 8)
    assert np.abs(got["logits"] - hf_logits(hf, torch.float32)).max() < 1e-4
    assert got["new"] == greedy_of_hugging_face(hf, PROMPTS, 8)
    for dtype in TOLERANCE:
        hold_near(one_run(World.single("cuda"), folder, dtype, "shipped", PROMPTS, 8), hf_logits(hf), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("plan", ["shipped", "as-drawn"])
@pytest.mark.parametrize("dtype", ["float32", *TOLERANCE])
def test_two_nccl_ranks(checkpoint, family, dtype, plan):
    odd = ODD if dtype == "float32" else HEAD_32  # a head of 8 would have FlexAttention compile on every rank
    hold_ranks([checkpoint(device="cuda", **odd), family("gpt2")], dtype, plan, 2)


@pytest.mark.parametrize("size", [pytest.param(n, marks=pytest.mark.gpus(n)) for n in (4, 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_more_nccl_ranks(family, dtype, size):
    """On eight, neither 12 nor 25 heads come out even: the last rank has none."""
    hold_ranks([family("gpt2"), family("gpt2-xl")], dtype, "shipped", size)


def several(world, folders, *args):
    return [one_run(world, folder, *args) for folder in folders]


def hold_ranks(checkpoints, dtype, plan, size):
    folders = [folder for folder, _ in checkpoints]
    ranks = on_ranks(size, several, folders, dtype, plan, PROMPTS, 8, device="cuda", env=SHARE, timeout=300)
    for i, (_, hf) in enumerate(checkpoints):
        layers = hf.config.n_layer
        for got in (rank[i] for rank in ranks):
            assert got["world"] == "nccl"
            gathers = 1 if plan == "shipped" else 3 * layers + 1
            assert got["moved"] == {"all_reduce": 2 * layers + 1, "all_gather": gathers}
            np.testing.assert_array_equal(got["logits"], ranks[0][i]["logits"])
            assert got["new"] == ranks[0][i]["new"]
            if dtype == "float32":
                assert np.abs(got["logits"] - hf_logits(hf, torch.float32)).max() < 1e-4
                assert got["new"] == greedy_of_hugging_face(hf, PROMPTS, 8)
            else:
                hold_near(got, hf_logits(hf), dtype)

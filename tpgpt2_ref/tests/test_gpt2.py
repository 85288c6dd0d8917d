"""The equality ladder's first rungs: our fp32 = Hugging Face's, TP=N = TP=1, as drawn = shipped, padding unseen."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from tpgpt2_ref.config import FAMILY as FAMILY_CONFIGS
from tpgpt2_ref.engine import Engine, prompt_logits
from tpgpt2_ref.gpt2 import GPT2Model
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.trace import Trace
from tpgpt2_ref.weights import load_model

from .conftest import on_ranks

TINY = dict(n_layer=2, n_head=4, n_embd=32, n_positions=64, vocab_size=257, bos_token_id=256, eos_token_id=256)
ODD = dict(n_layer=3, n_head=5, n_embd=40, n_positions=64, vocab_size=101, n_inner=70, bos_token_id=0, eos_token_id=100)
# the family's widths, heads and vocabulary; two layers are enough to see a wrong shard
FAMILY = {name: dict(n_layer=2, n_head=h, n_embd=d, bos_token_id=50256, eos_token_id=50256)
          for name, h, d in (("gpt2", 12, 768), ("gpt2-medium", 16, 1024), ("gpt2-large", 20, 1280),
                             ("gpt2-xl", 25, 1600))}
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [42], [99, 98, 97, 5, 5]]


def greedy_of_hugging_face(model, prompts, n):
    out = []
    with torch.no_grad():
        for prompt in prompts:
            ids = list(prompt)
            while len(ids) < len(prompt) + n and (len(ids) == len(prompt) or ids[-1] != model.config.eos_token_id):
                ids.append(int(model(torch.tensor([ids], device=model.device)).logits[0, -1].argmax()))
            out.append(ids[len(prompt):])
    return out


def both(world, folder, prompts, n):
    """Greedy ids and logits of both plans on this rank, with what a forward moved."""
    out = {}
    for plan in ("shipped", "as-drawn"):
        model = load_model(str(folder), world, plan)
        engine = Engine(model)
        new = engine.generate(prompts, n)
        out[plan] = dict(new=new, logits=prompt_logits(model, prompts[0]).numpy(), moved=engine.first_forward)
    return out


def hold(ranks, hf, prompts, n, size, layers):
    want = hf(torch.tensor([prompts[0]])).logits[0].detach().numpy()
    new = greedy_of_hugging_face(hf, prompts, n)
    for got in ranks:
        for plan in got:
            assert got[plan]["new"] == new, plan
            assert got[plan]["logits"].shape == want.shape
            assert np.abs(got[plan]["logits"] - want).max() < 1e-4
            np.testing.assert_array_equal(got[plan]["logits"], ranks[0][plan]["logits"])  # bitwise the same on ranks
        if size > 1:
            assert got["shipped"]["moved"] == {"all_reduce": 2 * layers + 1, "all_gather": 1}
            assert got["as-drawn"]["moved"] == {"all_reduce": 2 * layers + 1, "all_gather": 3 * layers + 1}


def shapes_on(world, folders, prompts, n):
    return [both(world, folder, prompts, n) for folder in folders]


@pytest.mark.parametrize("size", [1, 2, 3, 4])  # and 8: test_eight_ranks.py
def test_equals_hugging_face_at_every_tp(checkpoint, size):
    made = [(shape, *checkpoint(**shape)) for shape in (TINY, ODD)]
    new = 12 if size < 4 else 4  # many ranks on few cores wait for each other at every collective
    args = ([folder for _, folder, _ in made], PROMPTS, new)
    ranks = on_ranks(size, shapes_on, *args) if size > 1 else [shapes_on(World.single(), *args)]
    for i, (shape, _, hf) in enumerate(made):
        hold([got[i] for got in ranks], hf, PROMPTS, new, size, shape["n_layer"])


def test_xl_with_its_25_heads_on_two_ranks(checkpoint):
    folder, hf = checkpoint(**dict(FAMILY["gpt2-xl"], vocab_size=1001, bos_token_id=0, eos_token_id=1000))
    hold(on_ranks(2, both, folder, PROMPTS, 4), hf, PROMPTS, 4, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", FAMILY)
def test_every_family_shape_at_every_tp(checkpoint, name, size):
    folder, hf = checkpoint(**FAMILY[name])
    ranks = on_ranks(size, both, folder, PROMPTS, 8) if size > 1 else [both(World.single(), folder, PROMPTS, 8)]
    hold(ranks, hf, PROMPTS, 8, size, 2)


def test_batched_equals_alone(checkpoint):
    model = load_model(str(checkpoint(**ODD)[0]), World.single())
    engine = Engine(model)
    assert engine.generate(PROMPTS, 8) == [engine.generate([p], 8)[0] for p in PROMPTS]


def test_sequences_wait_for_pages_and_none_is_lost(checkpoint):
    model = load_model(str(checkpoint(**TINY)[0]), World.single())
    few = Engine(model, num_blocks=4)  # 3 pages: one long prompt, or the two short ones, at a time
    assert few.generate(PROMPTS, 8) == Engine(model).generate(PROMPTS, 8)


def test_random_weights_do_not_depend_on_the_ranks():
    one = prompt_logits(load_model("random:gpt2-test", World.single()), PROMPTS[0]).numpy()
    for got in on_ranks(3, random_logits):
        np.testing.assert_allclose(got, one, atol=1e-5)
    assert one.std() > 0.01


def random_logits(world):
    return prompt_logits(load_model("random:gpt2-test", world), PROMPTS[0]).numpy()


@pytest.mark.parametrize("name,size", [("gpt2", 2), ("gpt2", 4), ("gpt2-medium", 2)])
def test_a_rank_holds_its_shard_and_nothing_more(name, size):
    def elements(world):  # no process group is needed to construct a rank
        with torch.device("meta"):
            return sum(p.numel() for p in GPT2Model(FAMILY_CONFIGS[name], world, None).parameters())

    whole, config = elements(World.single()), FAMILY_CONFIGS[name]
    on_every_rank = config.n_positions * config.n_embd
    for rank in range(size):
        want = (whole - on_every_rank) / size + on_every_rank
        assert elements(World(rank, size)) == pytest.approx(want, rel=0.005)  # norms and c_proj biases are on both


def test_recorder_names_the_layers(checkpoint):
    world = World.single()
    world.trace = Trace()
    Engine(load_model(str(checkpoint(**TINY)[0]), world)).generate([[1]], 1)
    assert world.trace.rows == []  # one rank moves nothing

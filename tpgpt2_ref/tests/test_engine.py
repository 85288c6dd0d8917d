"""The engine's decode: the step made of twins is gpt2.py's, rows end when they should, and noise is where it stands."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpgpt2_ref.engine import Engine, SamplingParams
from tpgpt2_ref.engine.graph import PlainStep
from tpgpt2_ref.engine.ladder import LADDER, Rung, rungs
from tpgpt2_ref.engine.sampling import sample
from tpgpt2_ref.kernels import KERNELS
from tpgpt2_ref.kernels.plain import key_value, order_key
from tpgpt2_ref.noise import gumbel, hash32
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.weights import load_model

from .conftest import on_ranks

PROMPTS = [[1, 2, 3], [5], list(range(20, 57)), [7, 7]]
TWINS = Rung("twins", "every function in plain torch", fused=())
SAMPLED = [SamplingParams(), SamplingParams(0.8, seed=3), SamplingParams(1.1, top_k=9, top_p=0.8, seed=2**40 + 5)]


def make_graphs(model, rung=TWINS, **more):
    """An engine that takes the graphs' way, from the first line to the last, on a CPU."""
    return Engine(model, rung=rung, capture=PlainStep, **more)


def decode_on_a_rank(world):
    engine = make_graphs(load_model("random:gpt2-test", world))
    return [engine.generate(PROMPTS, 9, params) for params in SAMPLED]


@pytest.mark.parametrize("params", SAMPLED)
def test_decoder_gives_gpt2s_tokens(params):
    model = load_model("random:gpt2-test", World.single())
    want = Engine(model).generate(PROMPTS, 9, params)
    for rung in (TWINS, Rung("readable", "gpt2.py", readable=True, fused=())):
        engine = make_graphs(model, rung)
        assert engine.generate(PROMPTS, 9, params) == want
        assert engine.generate(PROMPTS, 9, params) == want  # a second time, on the same state
        assert [engine.generate([p], 9, params)[0] for p in PROMPTS[:1]] == want[:1]  # alone


def test_two_ranks_draw_the_tokens_of_one():
    engine = Engine(load_model("random:gpt2-test", World.single()))
    want = [engine.generate(PROMPTS, 9, params) for params in SAMPLED]
    assert on_ranks(2, decode_on_a_rank) == [want, want]


def test_sequences_end_at_their_own_time():
    model = load_model("random:gpt2-test", World.single())
    params = SamplingParams(1.0, seed=1)
    free = Engine(model).generate(PROMPTS, 24, params)
    end = free[2][3]  # becomes the end token: sequence 2 stops at its fourth, the others where they meet it
    object.__setattr__(model.config, "eos_token_id", end)
    want = [new[: new.index(end) + 1] if end in new else new for new in free]
    try:
        assert make_graphs(model).generate(PROMPTS, 24, params) == want
        assert make_graphs(model, num_blocks=5).generate(PROMPTS, 24, params) == want  # some must wait for pages
    finally:
        object.__setattr__(model.config, "eos_token_id", 256)


def test_the_cache_stays_where_it_is():
    engine = make_graphs(load_model("random:gpt2-test", World.single()))
    caches = set()
    for _ in range(3):
        engine.generate(PROMPTS, 5)
        caches.add(engine.kv_caches[0].data_ptr())
    assert len(caches) == 1  # graphs hold its address


def test_prefill_of_a_bucket():
    """Prompts, and what fills the bucket up behind them: gpt2.py's logits and cache."""
    pytest.importorskip("triton")
    engine = make_graphs(load_model("random:gpt2-test", World.single()))
    for prompts in (PROMPTS, PROMPTS[2:3], [[3] * 64, [4] * 127], [[5] * 128]):
        forward, sequences = engine.prefill_call(prompts), engine.scheduler.running
        with torch.inference_mode():
            want = engine._prefill(sequences)  # a bucket's first batch is gpt2.py's
            pages = [kv.clone() for kv in engine.kv_caches]
            for kv in engine.kv_caches:
                kv.zero_()
            got = engine._prefill(sequences)
        assert engine.prefills.buckets and torch.equal(forward(), want.argmax(-1))
        assert (got - want).abs().max() < 1e-4
        held = sorted(page for s in sequences for page in s.blocks)
        for kv, reference in zip(engine.kv_caches, pages):
            assert (kv - reference)[:, held].abs().max() < 1e-4
        engine.close()


def test_buckets_hold_their_batches():
    pytest.importorskip("triton")  # a CPU build of torch brings none
    from tpgpt2_ref.engine.prefill_graph import bucket_of

    for lengths in ([1], [1024], [1000] * 8, [1, 2, 3], [1024] * 64, [127] * 3):
        sequences, tokens, longest = bucket_of(lengths, 1024)
        padding = tokens - sum(lengths)
        assert sequences > len(lengths) and 0 < padding <= max(64, sum(lengths) / 8 + 1) and padding <= 512
        assert longest >= max(*lengths, padding) and longest <= 1024


def test_why_not_graphs():
    model = load_model("random:gpt2-test", World.single())
    assert Engine(model).why_eager == "CUDA graphs need a GPU"
    assert Engine(model, rung=LADDER[0]).why_eager == "it was asked for"


def test_rungs_of_a_machine():
    assert [r.name for r in rungs(1, True)] == [r.name for r in LADDER if r.name != "+sum"]
    assert rungs(2, False)[-1].name == "+sum" and rungs(2, True)[-1].pdl
    assert set(LADDER[-1].fused) == set(KERNELS)
    for below, rung in zip(LADDER[2:], LADDER[3:]):  # each adds a switch and keeps the others
        assert set(below.fused) <= set(rung.fused)
        assert replace(below, name=rung.name, what=rung.what) != rung


def test_order_of_keys():
    """The largest key is the largest value's, and of equals the lowest token's; negative zero and infinities too."""
    values = torch.tensor([-float("inf"), -3.5, -1e-30, 0.0, 2e-38, 1.0, 1.5, 1.5, float("inf")])
    tokens = torch.arange(9, dtype=torch.int32)
    keys = order_key(values, tokens)
    assert keys.argsort().tolist() == [0, 1, 2, 3, 4, 5, 7, 6, 8]
    assert (0x7FFFFFFF - (keys & 0xFFFFFFFF)).tolist() == tokens.tolist()
    assert torch.equal(key_value(keys), values)


def test_noise_is_gumbels():
    """Mean, variance and independence of 200,000 draws, and the same draw for the same place."""
    rows, token = torch.arange(200), torch.arange(1000, dtype=torch.int32)
    noise = gumbel(rows, rows * 0 + 5, token)
    assert abs(noise.mean() - 0.5772) < 0.01 and abs(noise.var() - torch.pi**2 / 6) < 0.02
    assert torch.corrcoef(noise[:, :50].T).triu(1).abs().max() < 0.35
    assert torch.equal(noise[3:4], gumbel(rows[3:4], rows[:1] * 0 + 5, token))
    for other in (torch.tensor(3 + 2**bit if bit < 63 else 3 - 2**63)[None] for bit in range(2, 64)):
        assert not torch.equal(noise[3:4], gumbel(other, rows[:1] * 0 + 5, token))  # every bit of the seed counts
    assert hash32(torch.arange(1 << 16, dtype=torch.int32)).unique().numel() == 1 << 16


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20000, 1)
    drawn = sample(logits, SamplingParams(2.0, seed=9), torch.arange(20000), torch.zeros(20000))
    share = torch.bincount(drawn, minlength=4) / 20000
    assert (share - (logits[0] / 2).softmax(0)).abs().max() < 0.015
    top = sample(logits, SamplingParams(2.0, top_p=0.5, seed=9), torch.arange(20000), torch.zeros(20000))
    assert set(top.tolist()) == {0, 1}


def test_full_cache_is_refused_before_anything_runs():
    from tpgpt2_ref.errors import UserError

    engine = Engine(load_model("random:gpt2-test", World.single()), num_blocks=3)
    with pytest.raises(UserError, match="2 pages of 16 tokens, one prompt needs 3"):
        engine.generate([[1], [2] * 30], 4)
    assert engine.kv_caches == []  # nothing was allocated

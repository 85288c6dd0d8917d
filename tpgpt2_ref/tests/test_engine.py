"""The engine's decode: the step made of twins is gpt2.py's, rows end when they should, and noise is where it stands."""
from __future__ import annotations

from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tpgpt2_ref.config import CacheConfig
from tpgpt2_ref.engine import Engine, SamplingParams
from tpgpt2_ref.engine import decode_graph as decoder
from tpgpt2_ref.engine.engine import Sequence
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


@pytest.fixture
def uncaptured(monkeypatch):
    """`GraphDecoder` without a GPU: a captured step that just runs, from the first to the last line of `run`."""
    monkeypatch.setattr(decoder, "CapturedStep", lambda step, pool: SimpleNamespace(replay=step, pool=pool))


def make_decoding(model, rung=TWINS):
    """An engine whose decode steps go through `GraphDecoder`, on a CPU."""
    engine = Engine(model, rung=rung)
    engine._decode = lambda sequences, params: graphs(engine).run(sequences, params)
    return engine


def graphs(engine):
    engine.decoder = engine.decoder or decoder.GraphDecoder(engine.model, engine.kv_caches, 16, engine.rung)
    return engine.decoder


def decode_on_a_rank(world):
    decoder.CapturedStep = lambda step, pool: SimpleNamespace(replay=step, pool=pool)  # in this rank's process
    engine = make_decoding(load_model("random:gpt2-test", world))
    return [engine.generate(PROMPTS, 9, params) for params in SAMPLED]


@pytest.mark.parametrize("params", SAMPLED)
def test_decoder_gives_gpt2s_tokens(uncaptured, params):
    model = load_model("random:gpt2-test", World.single())
    want = Engine(model).generate(PROMPTS, 9, params)
    for rung in (TWINS, Rung("readable", "gpt2.py", readable=True, fused=())):
        engine = make_decoding(model, rung)
        assert engine.generate(PROMPTS, 9, params) == want
        assert engine.generate(PROMPTS, 9, params) == want  # a second time, on the same state
        assert [engine.generate([p], 9, params)[0] for p in PROMPTS[:1]] == want[:1]  # alone: number 0 as before


def test_two_ranks_draw_the_tokens_of_one():
    engine = Engine(load_model("random:gpt2-test", World.single()))
    want = [engine.generate(PROMPTS, 9, params) for params in SAMPLED]
    assert on_ranks(2, decode_on_a_rank) == [want, want]


def test_sequences_end_at_their_own_time(uncaptured):
    model = load_model("random:gpt2-test", World.single())
    params = SamplingParams(1.0, seed=1)
    free = Engine(model).generate(PROMPTS, 24, params)
    end = free[2][3]  # becomes the end token: sequence 2 stops at its fourth, the others where they meet it
    object.__setattr__(model.config, "eos_token_id", end)
    want = [new[: new.index(end) + 1] if end in new else new for new in free]
    try:
        assert make_decoding(model).generate(PROMPTS, 24, params) == want
        few = Engine(model, CacheConfig(num_blocks=5))  # some must wait for pages
        few._decode = lambda sequences, params: graphs(few).run(sequences, params)
        few.rung = TWINS
        assert few.generate(PROMPTS, 24, params) == want
    finally:
        object.__setattr__(model.config, "eos_token_id", 256)


def test_the_cache_stays_where_it_is(uncaptured):
    engine = make_decoding(load_model("random:gpt2-test", World.single()))
    caches = set()
    for _ in range(3):
        engine.generate(PROMPTS, 5)
        caches.add(engine.kv_caches[0].data_ptr())
    assert len(caches) == 1  # graphs hold its address


def test_prefill_of_a_bucket(monkeypatch):
    """Prompts, and what fills the bucket up behind them: gpt2.py's logits and cache."""
    pytest.importorskip("triton")
    from tpgpt2_ref.engine import prefill_graph, prefill_step
    from tpgpt2_ref.kernels import plain

    for name in ("add_norm", "write_cache"):
        monkeypatch.setattr(prefill_step, name, getattr(plain, name))

    def uncaptured(step):
        step()
        return SimpleNamespace(replay=step)

    monkeypatch.setattr(prefill_graph, "CapturedStep", uncaptured)
    monkeypatch.setattr(prefill_graph, "GRAPHED", ("NAIVE", "SDPA"))
    engine = Engine(load_model("random:gpt2-test", World.single()))
    for prompts in (PROMPTS, PROMPTS[2:3], [[3] * 64, [4] * 127]):
        sequences = [Sequence(i, p, 1) for i, p in enumerate(prompts)]
        engine._admit(deque(sequences), [], engine._cache_for(sequences))
        with torch.inference_mode():
            want = engine._prefill_logits(sequences)
            pages = [kv.clone() for kv in engine.kv_caches]
            for kv in engine.kv_caches:
                kv.zero_()
            graphs = prefill_graph.GraphPrefill(engine.model, engine.kv_caches, 16)
            assert graphs.logits(sequences) is None  # a bucket's first batch
            got = graphs.logits(sequences)
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
    noise = gumbel(1, rows, rows * 0 + 5, token)
    assert abs(noise.mean() - 0.5772) < 0.01 and abs(noise.var() - torch.pi**2 / 6) < 0.02
    assert torch.corrcoef(noise[:, :50].T).triu(1).abs().max() < 0.35
    assert torch.equal(noise[3:4], gumbel(1, rows[3:4], rows[:1] * 0 + 5, token))
    assert not torch.equal(noise, gumbel(2, rows, rows * 0 + 5, token))
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

    engine = Engine(load_model("random:gpt2-test", World.single()), CacheConfig(num_blocks=3))
    with pytest.raises(UserError, match="2 pages of 16 tokens, one prompt needs 3"):
        engine.generate([[1], [2] * 30], 4)
    assert engine.kv_caches == []  # nothing was allocated

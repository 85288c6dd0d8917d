"""The engine's decode: the step made of twins is gpt2.py's, rows end when they should, and noise is where it stands."""
from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpgpt2_ref.attention.kv_cache import BlockAllocator
from tpgpt2_ref.config import GPT2Config
from tpgpt2_ref.engine import Engine, SamplingParams, decode_graph
from tpgpt2_ref.engine.decode_graph import cannot_prefill, choose_rung, graph_batch
from tpgpt2_ref.engine.graph import PlainStep
from tpgpt2_ref.engine.ladder import LADDER, Rung, rungs
from tpgpt2_ref.engine.memory import Plan
from tpgpt2_ref.engine.prefill_graph import BUCKETS, bucket_of
from tpgpt2_ref.engine.sampling import sample
from tpgpt2_ref.engine.scheduler import Scheduler, Sequence
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.kernels.plain import key_value, order_key
from tpgpt2_ref.noise import gumbel, hash32
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.weights import Checkpoint, load_model

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


@pytest.fixture(scope="module")
def small():
    """A model whose length is no multiple of a page, nor of a prefill's grain."""
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=41, vocab_size=67, eos_token_id=66)
    model = load_model(Checkpoint(config, None, {}), World.single())
    return model, make_graphs(model), Engine(model)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 41), min_size=1, max_size=9), new=st.integers(1, 41),
       spare=st.none() | st.integers(0, 6), max_batch=st.integers(1, 9), top_k=st.sampled_from([0, 1, 7, 100]),
       temperature=st.sampled_from([0.0, 1e-30, 0.7, 1.5]), top_p=st.sampled_from([1.0, 0.6]),
       seed=st.sampled_from([0, 2**32 + 5, 2**64 - 1]), mix=st.integers(0, 99))
def test_graphs_give_what_gpt2_gives(small, lengths, new, spare, max_batch, top_k, temperature, top_p, seed, mix):
    """Any prompts up to the model's length, few pages or many, any sampling; again on the same graphs, and shuffled."""
    model, graphs, eager = small
    prompts = [[(mix + 7 * i * i + j * (i + 1)) % 66 for j in range(n)] for i, n in enumerate(lengths)]
    params = SamplingParams(temperature, top_k, top_p, seed)
    want = eager.generate(prompts, new, params)
    pages = max(-(-(n + min(new, max(1, 41 - n)) - 1) // 16) for n in lengths)
    for engine in (graphs, graphs, Engine(model, spare if spare is None else pages + spare + 1, max_batch, TWINS,
                                          PlainStep)):
        assert engine.generate(prompts, new, params) == want
    assert graphs.generate(prompts[::-1], new, params) == want[::-1] or len(set(map(tuple, prompts))) < len(prompts)
    assert graphs.why_eager is None and len(graphs.prefills.buckets) <= BUCKETS
    assert graphs.decoder is None or len(graphs.decoder.steps) <= 2 * 5  # sizes, with and without filters


def test_copies_of_a_prompt_draw_apart_and_prompts_do_too():
    model = load_model("random:gpt2-test", World.single())
    params = SamplingParams(1.0, seed=7)
    first, second, third, other = Engine(model).generate([[5], [5], [5], [9]], 12, params)
    assert len({tuple(new) for new in (first, second, third, other)}) == 4
    assert Engine(model).generate([[9], [5], [5]], 12, params) == [other, first, second]
    drawn = [Engine(model).generate([[5]], 12, SamplingParams(1.0, seed=seed))[0] for seed in (5, 2**32 + 5, 2**63 + 5)]
    assert len(set(map(tuple, drawn))) == 3


def test_the_cache_takes_no_more_than_there_is(small, monkeypatch):
    """Memory for a page or two more than one prompt needs: the others wait, and get the same tokens."""
    model, _, eager = small
    want = eager.generate([[1] * 30, [2] * 20, [3]], 9)
    engine = Engine(model)
    monkeypatch.setattr(engine, "_plan", lambda blocks: Plan(min(blocks, 4), 256, 1000, 0))
    assert engine.generate([[1] * 30, [2] * 20, [3]], 9) == want
    assert engine.kv_caches[0].shape[1] == 4
    assert engine.generate([[1] * 30, [2] * 20, [3]], 9) == want and engine.kv_caches[0].shape[1] == 4
    monkeypatch.setattr(engine, "_plan", lambda blocks: Plan(min(blocks, 2), 256, 1000, 0))
    engine.close()
    with pytest.raises(UserError, match="memory holds 1 pages of 16 tokens, one prompt needs 3"):
        engine.generate([[1] * 30], 9)
    monkeypatch.setattr(engine, "_plan", lambda blocks: Plan(99, 256, 40, 0))
    with pytest.raises(UserError, match="1 of these 3 prompts are all that one prefill can take"):
        engine.prefill_call([[1] * 30, [2] * 20, [3]])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(blocks=st.integers(1, 30), size=st.sampled_from([1, 16]), wishes=st.lists(st.integers(0, 200), max_size=30))
def test_allocator(blocks, size, wishes):
    """Pages are whole, nobody's twice, never page 0; a refusal takes nothing; what comes back can go out again."""
    allocator, held = BlockAllocator(blocks, size), []
    for i, tokens in enumerate(wishes):
        free = len(allocator.free)
        try:
            held.append(allocator.allocate(tokens))
            assert len(held[-1]) * size >= tokens > (len(held[-1]) - 1) * size
        except UserError:
            assert tokens > free * size and len(allocator.free) == free
        if i % 3 == 2 and held:
            allocator.release(held.pop(0))
        taken = [page for pages in held for page in pages]
        assert sorted([0, *taken, *allocator.free]) == list(range(blocks))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(jobs=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=12),
       max_batch=st.integers(1, 5), spare=st.integers(0, 8))
def test_scheduler(jobs, max_batch, spare):
    """All run, in order, no more at once than allowed, whenever they end."""
    sequences = [Sequence(array("q", [1] * n), limit) for n, limit, _ in jobs]
    ends = {id(s): min(s.limit, end) for s, (_, _, end) in zip(sequences, jobs)}
    scheduler = Scheduler(1 + max(-(-s.cached // 16) for s in sequences) + spare, 16, max_batch, max_tokens=64)
    scheduler.add(sequences)
    started = []
    while scheduler.busy:
        fresh = scheduler.admit()
        assert len(fresh) == 1 or sum(len(s.prompt) for s in fresh) <= 64
        started += fresh
        assert 1 <= len(scheduler.running) <= max_batch
        pages = [page for s in scheduler.running for page in s.blocks]
        assert len(pages) == len(set(pages)) and all(len(s.blocks) * 16 >= s.cached for s in scheduler.running)
        for s in scheduler.running:
            s.new.append(7 if len(s.new) + 1 == ends[id(s)] else 3)
        scheduler.retire((7,))
    assert started == sequences and len(scheduler.allocator.free) == scheduler.allocator.num_blocks - 1


def forced(source: str, **can):
    """A model on a GPU to imagine, whose backend somebody named, or nobody."""
    impl = SimpleNamespace(name="X", dtype=torch.float16, cache_dtype="auto", head_size=64, cuda_graphs=True,
                           prefill_graphs=False)
    impl.__dict__.update(can)
    return SimpleNamespace(world=World(device=torch.device("cuda:0")), impl=impl, plan="shipped",
                           choice=SimpleNamespace(source=source))


def test_a_backend_that_was_named_is_captured(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert choose_rung(forced("platform")) == (next(rung for rung in LADDER if rung.pdl), None)
    for source in ("force", "environment"):
        assert choose_rung(forced(source)) == (LADDER[1], None)
        rung, why = choose_rung(forced(source, cuda_graphs=False))
        assert rung == LADDER[0] and "X asks the GPU for lengths" in why
    assert cannot_prefill(forced("force", prefill_graphs=True)) is None
    assert "X" in cannot_prefill(forced("force"))


def test_clusters_decode_where_they_are_faster(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(decode_graph, "why_no_clusters", lambda model: None)
    model = forced("platform")
    for hidden, size, rows in [(768, 1, 4), (1600, 1, 2), (768, 2, 4), (1024, 2, 1), (1600, 2, 0), (768, 4, 0)]:
        model.config, model.world.size = SimpleNamespace(n_embd=hidden), size
        rung, why = choose_rung(model)
        assert (rung.name, rung.clusters, why) == ("+clusters" if rows else "+pdl", rows, None)


def test_rows_of_a_graph():
    rows = [graph_batch(n) for n in range(1, 257)]
    assert all(n <= r < n + 16 and r <= 2 * n for n, r in enumerate(rows, 1)) and graph_batch(129) == 144
    assert sorted(set(rows)) == [1, 2, 4, 8, *range(16, 257, 16)]


def test_prefill_of_a_bucket():
    """Prompts, and what fills the bucket up behind them: gpt2.py's logits and cache."""
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


@settings(max_examples=200, deadline=None, derandomize=True)
@given(n_positions=st.integers(1, 1024), data=st.data())
def test_buckets_hold_their_batches(n_positions, data):
    lengths = data.draw(st.lists(st.integers(1, n_positions), min_size=1, max_size=70))
    sequences, tokens, longest = bucket_of(lengths, n_positions)
    padding = tokens - sum(lengths)
    assert sequences > len(lengths) and 0 < padding <= min(max(64, sum(lengths) / 8 + 1), 512, n_positions)
    assert max(*lengths, padding) <= longest <= n_positions


def test_why_not_graphs():
    model = load_model("random:gpt2-test", World.single())
    assert Engine(model).why_eager == "CUDA graphs need a GPU"
    assert Engine(model, rung=LADDER[0]).why_eager == "it was asked for"


def test_rungs_of_a_machine():
    assert rungs(2, False)[-1].name == "+sum" and rungs(1, False)[-1].name == "+norm" and rungs(2, True)[-1].pdl
    for below, rung in zip(LADDER[2:], LADDER[3:]):  # each adds a switch and keeps the others
        assert set(below.fused) <= set(rung.fused) and below.kernels() != rung.kernels()


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
    engine = Engine(load_model("random:gpt2-test", World.single()), num_blocks=3)
    with pytest.raises(UserError, match="2 pages of 16 tokens, one prompt needs 3"):
        engine.generate([[1], [2] * 30], 4)
    assert engine.kv_caches == []  # nothing was allocated

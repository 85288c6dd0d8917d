"""Decode steps of cluster kernels on a CPU: their sources in the emulator against their twins, bit against bit, and as
an engine's steps. `test_clusters_gpu.py` has them on GPUs."""
from __future__ import annotations

import itertools
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tpgpt2_ref.engine import Engine, SamplingParams
from tpgpt2_ref.engine.cluster_step import ClusterSteps
from tpgpt2_ref.engine.engine import prompt_logits
from tpgpt2_ref.engine.graph import PlainStep
from tpgpt2_ref.errors import RankError
from tpgpt2_ref.kernels.clusters.shape import MOST_ROWS, Shape
from tpgpt2_ref.kernels.clusters.step import Stream

from . import cluster_cases as cases
from .cluster_cases import (
    CLUSTERS,
    CONTEXTS,
    Row,
    build_model,
    emulator,
    follow,
    load,
    models_of,
    run_step,
    side_by_side,
)
from .conftest import on_ranks

CLOSE = 2e-5  # relative error of sums in float32, in whichever order


@pytest.fixture(scope="module")
def model():
    return build_model()


def rows_of(*contexts) -> list[Row]:
    return [Row(i + 1, cached) for i, cached in enumerate(contexts)]


def held(ranks, seed: int = 1) -> None:
    """A step's kernels are their twins."""
    def launch(kernel, how, late):
        kernel.launch(**how, seed=seed, late=late)

    errors = follow(ranks, launch)
    flips = errors.pop("rounded otherwise")
    assert flips < 1e-3 and max(errors.values()) < (1e-3 if flips else CLOSE), errors


# --- against the twins


@emulator
@pytest.mark.parametrize("batch, contexts", [(1, (0, 257)), (4, (*CONTEXTS, 7, 300))])
def test_kernels_are_their_twins(model, batch, contexts):
    """All contexts, in rows of unequal lengths, greedy and at a temperature in turn."""
    for i in range(0, len(contexts), batch):
        rows = rows_of(*contexts[i : i + batch])
        held(side_by_side([model], rows, load, scramble=i, temperature=i // batch % 2 * 0.8), seed=i)


@emulator
@settings(max_examples=4, deadline=None)
@given(contexts=st.tuples(*[st.integers(0, 519)] * 4), dead=st.sets(st.integers(0, 3), max_size=3),
       scramble=st.integers(0, 99), temperature=st.sampled_from([0.0, 1e-30, 0.7, 3.0]), seed=st.integers(0, 99))
@example((519, 0, 256, 3), {1, 3}, 5, 0.7, 5)
def test_any_rows_of_which_some_are_dead(model, contexts, dead, scramble, temperature, seed):
    rows = [Row(b + 1, cached, b not in dead) for b, cached in enumerate(contexts)]
    held(side_by_side([model], rows, load, scramble=scramble, temperature=temperature), seed)


@emulator
def test_flags_and_float16(monkeypatch):
    """One rank with a flag beside each value, as several have: what is waited for differs, and nothing else."""
    monkeypatch.setattr(Shape, "flagged", True)
    half = build_model(dtype="float16")
    one, other = (side_by_side([half], rows_of(256, 3), load)[0] for _ in range(2))
    held([other])
    run_step([one], 1), run_step([other], 2)
    # All kernels of the second step at once, the last ones first: the first one's flags are there to be mistaken.
    cases.at_once([partial(kernel.launch, **how, seed=i) for i, (kernel, how) in
                   reversed(list(enumerate(one.step.calls)))])
    assert same_bits([one], [other]) and one.state.positions.tolist() == [258, 5]


@emulator
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_are_their_twins_and_have_the_tokens_of_one(model, size):
    """Three heads on two ranks, on four: one head is padding, or one rank has nothing else."""
    models, rows = models_of(size), rows_of(17, 300)
    ranks, again = (side_by_side(models, rows, load, temperature=0.5) for _ in range(2))
    (alone,) = side_by_side([model], [*rows, Row(0, 0, False), Row(0, 0, False)], load, temperature=0.5)
    held(ranks)
    run_step(ranks, 1)
    for seed in range(2):
        run_step([alone], seed), run_step(again, 5 + seed)
    assert all(torch.equal(rank.state.tokens, alone.state.tokens[:2]) for rank in ranks)
    assert same_bits(ranks, again)


# --- the same bits


def same_bits(ranks, others) -> bool:
    """Whether two runs left the same, to the last bit, in the live rows of all ranks."""
    return all(torch.equal(a, b) for one, other in zip(ranks, others, strict=True) for a, b in (
        (one.step.keys.amax(0)[one.live], other.step.keys.amax(0)[other.live]), (one.state.ids, other.state.ids),
        (one.stream.buffer, other.stream.buffer), (one.state.tokens, other.state.tokens),
        *((c[:, 1:].view(torch.int16), d[:, 1:].view(torch.int16)) for c, d in zip(one.caches, other.caches))))


@emulator
def test_the_same_bits_on_a_repeat_in_any_order(model):
    runs = []
    for seed in (0, 0, 1, 2):
        runs.append(side_by_side([model], rows_of(255), load, temperature=0.7))
        run_step(runs[-1], seed), run_step(runs[-1], seed + 50)
    assert all(same_bits(runs[0], run) for run in runs[1:])


@emulator
def test_the_same_bits_in_any_batch(model):
    """A row alone, and among four, in one place and another, and in other pages: its key holds its best logit."""
    def left(*rows, scramble):
        rank = side_by_side([model], rows, load, scramble=scramble)[0]
        run_step([rank])
        b, number = rows.index(row), rank.shape.kernels - 2
        pages = rank.state.block_table[b].long()
        return [rank.step.keys.amax(0)[b], rank.slots(number, rank.shape.clusters)[:, b],
                *(cache[:, pages].view(torch.int16) for cache in rank.caches)]

    row, a, b, dead = Row(9, 300), Row(2, 17), Row(3, 519), Row(4, 0, live=False)
    alone = left(row, scramble=0)
    for scramble, batch in enumerate(([a, row, b, dead], [row, dead, a, a]), 1):
        assert all(map(torch.equal, left(*batch, scramble=scramble), alone))


# --- an engine's steps


PROMPTS = [list(range(300, 817)), [11] * 255, [5, 6, 7]]  # the first one leaves room for three tokens


def truth_of(model):
    """gpt2.py in float32, with the weights that a model of 16 bits has."""
    truth = build_model(dtype="float32")
    for p, q in zip(truth.parameters(), model.parameters()):
        p.copy_(q)
    return truth


def doubtless(truth, prompts, texts, close: float) -> float:
    """Share of tokens whose logit in float32 is best by more than `close` deviations: all of them must be the best."""
    sure, total = 0, 0
    for prompt, new in zip(prompts, texts):
        logits = prompt_logits(truth, prompt + new)[len(prompt) - 1 : -1]
        (best, second), (token, _) = logits.topk(2).values.T, logits.topk(2).indices.T
        certain = best - second > close * logits.std()
        assert (token == torch.tensor(new))[certain].all()
        sure, total = sure + int(certain.sum()), total + len(new)
    return sure / total


def engine_of(model, **more):
    return Engine(model, rung=CLUSTERS, capture=PlainStep, clusters=partial(ClusterSteps, load=load, **more))


@emulator
def test_an_engine_on_cluster_kernels(model):
    """Three prompts in four rows to the model's end, then the two that are left; sampled, in other batches."""
    engine, truth = engine_of(model), truth_of(model)
    texts = engine.generate(PROMPTS, 5)
    assert [len(new) for new in texts] == [3, 5, 5] and engine.why_eager is None
    assert set(engine.decoder.steps) == {(4, False)} and engine.decoder.clusters.stream.step.item() == 4
    assert doubtless(truth, PROMPTS, texts, 0.05) > 0.6
    params, alone = SamplingParams(0.8, seed=3), engine_of(model)
    sampled = engine.generate(PROMPTS, 3, params)
    assert sampled[1:2] == alone.generate(PROMPTS[1:2], 3, params) and sampled != [new[:3] for new in texts]
    alone.generate(PROMPTS[2:], 2, replace(params, top_k=9))  # which the cluster kernels leave to others
    assert set(alone.decoder.steps) == {(1, False), (1, True)}


def engine_on_a_rank(world, folder):
    """([texts], what a rank says whose neighbour sends nothing)."""
    torch.set_grad_enabled(False)
    model = build_model(world=world)
    nbytes = Stream.nbytes(Shape.of(model, MOST_ROWS, model.impl.block_size))

    def stream(name, patience):
        buffers = [torch.from_file(f"{folder}/{name}{rank}", shared=True, size=nbytes, dtype=torch.uint8)
                   for rank in range(world.size)]
        kept.extend(buffers)
        return Stream(buffers[world.rank], [buffer.data_ptr() for buffer in buffers], patience)

    kept = []
    for name, rank in itertools.product("ab", range(world.size)):
        with open(f"{folder}/{name}{rank}", "ab") as file:  # of ones, whoever comes first
            if file.tell() == 0 and rank == world.rank:
                file.write(b"\xff" * nbytes)
    torch.distributed.barrier()
    texts = engine_of(model, stream=stream("a", cases.PATIENCE)).generate(PROMPTS[1:], 4)
    engine = engine_of(model, stream=stream("b", 1e-4))
    try:  # rank 1 wants one token, the prefill's
        engine.generate(PROMPTS[1:], 1 if world.rank else 3)
        return texts, None
    except RankError as e:
        return texts, str(e)


@emulator
def test_an_engine_on_two_ranks_and_one_that_sends_nothing(model, tmp_path):
    (texts, told), (others, nothing) = on_ranks(2, engine_on_a_rank, str(tmp_path))
    assert texts == others and doubtless(truth_of(model), PROMPTS[1:], texts, 0.05) > 0.6
    assert nothing is None and re.match(r"rank 0: a rank sent nothing for \d+ s; what came since then is wrong", told)


@emulator
def test_after_a_rank_that_sent_nothing_nobody_waits():
    """`failed` names the slot, and the rest of the step ends at once, in every kernel."""
    rank, silent = side_by_side(models_of(2), rows_of(17, 300), load, patience=1e-5)
    for i, (kernel, how) in enumerate(rank.step.calls):
        kernel.launch(**how, seed=i)
    assert 1 <= int(rank.stream.failed) <= rank.shape.slots and int(rank.stream.step) == 1
    assert int(silent.stream.failed) == int(silent.stream.step) == 0

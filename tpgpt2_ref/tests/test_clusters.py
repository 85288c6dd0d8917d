"""Decode steps of cluster kernels on a CPU: their sources in the emulator against their twins, bit against bit, and as
an engine's steps; then what says why they can't be had. `test_clusters_gpu.py` has them on GPUs."""
from __future__ import annotations

import itertools
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tpgpt2_ref.bench import phases
from tpgpt2_ref.config import FAMILY, GPT2Config
from tpgpt2_ref.engine import Engine, SamplingParams
from tpgpt2_ref.engine.cluster_step import ClusterSteps, why_no_clusters
from tpgpt2_ref.engine.engine import prompt_logits
from tpgpt2_ref.engine.graph import PlainStep
from tpgpt2_ref.engine.ladder import LADDER
from tpgpt2_ref.errors import RankError
from tpgpt2_ref.kernels.clusters import cache, nvrtc
from tpgpt2_ref.kernels.clusters.emulated import emulated, why_no_emulator
from tpgpt2_ref.kernels.clusters.shape import BLOCKS, MOST_ROWS, THREADS, UNITS, Shape, misfit
from tpgpt2_ref.kernels.clusters.step import Stream
from tpgpt2_ref.parallel.world import World

from . import cluster_cases as cases
from .cluster_cases import CONTEXTS, SMALL, Row, build_model, follow, models_of, run_step, side_by_side
from .conftest import on_ranks, run_cli

emulator = pytest.mark.skipif(why_no_emulator() is not None, reason=why_no_emulator() or "")
# What is no cluster of it is plain torch.
CLUSTERS = replace(LADDER[-1], fused=(), fused_sum=False, scaled_norm=False, pdl=False)
CLOSE = 2e-5  # relative error of sums in float32, in whichever order


def load(name, defines):
    """A kernel in the emulator. One row's is the one that `bench phases` takes: compiling is what costs time here."""
    return emulated(name, defines | {"PROFILE": defines["BATCH"] == 1})


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


# --- shapes, and why not


@given(heads=st.integers(1, 25), inner=st.integers(1, 200), rows=st.integers(1, 7000), layers=st.integers(1, 48),
       batch=st.sampled_from([1, 2, 4]), ranks=st.sampled_from([1, 2, 4, 8]))
def test_shapes(heads, inner, rows, layers, batch, ranks):
    """What one kernel writes, the next has room for; blocks fill clusters, and the units and rows are covered once."""
    shape = Shape(64 * heads, heads, UNITS * inner, 8 * rows, layers, 16, batch, ranks, 0, False)
    for kernel in ("embed", "attention", "mlp", "head"):
        assert shape.grid(kernel) % shape.blocks(kernel) == 0 and shape.grid(kernel) > 0
    assert shape.clusters * BLOCKS * UNITS >= shape.inner > (shape.clusters - 1) * BLOCKS * UNITS
    reads = {"attention": shape.clusters, "mlp": shape.heads, "head": shape.clusters}
    for kernel, count in reads.items():
        assert count * ranks <= shape.defines(kernel)["SLOTS"] <= shape.slots
    assert ranks <= shape.slots  # the embedding's
    assert shape.set_bytes % 16 == 0
    assert Stream.nbytes(shape) <= Stream.nbytes(replace(shape, batch=MOST_ROWS))


def test_a_launch_is_as_large_as_its_source_allows():
    """CUDA refuses more threads than `__launch_bounds__` names, which the emulator does not see."""
    for file in sorted(cache.SOURCE.glob("*.cu")):
        (bound,) = re.findall(r"__launch_bounds__\(([^,)]+)", file.read_text())
        assert eval(bound, {"THREADS": 256}) == THREADS, file.name


@pytest.mark.parametrize("patches, message", [
    ({"torch.version.cuda": None}, "this torch was built without CUDA"),
    ({"torch.cuda.is_available": lambda: False}, "torch finds no GPU"),
    ({"torch.cuda.get_device_capability": lambda device: (8, 9)},
     "the cluster kernels are for GPUs of compute capability 9.0 (Hopper), this one has 8.9"),
    ({"torch.cuda.get_device_capability": lambda device: (10, 0)},
     "the cluster kernels are for GPUs of compute capability 9.0 (Hopper), this one has 10.0"),
    ({"tpgpt2_ref.kernels.clusters.nvrtc._nvrtc": lambda: (_ for _ in ()).throw(OSError("libnvrtc.so.13: not there"))},
     "no NVRTC, the compiler that comes with torch's CUDA packages: libnvrtc.so.13: not there"),
    ({}, None),
])
def test_why_a_machine_cannot(monkeypatch, patches, message):
    here = {"torch.version.cuda": "13.0", "torch.cuda.is_available": lambda: True,
            "torch.cuda.get_device_capability": lambda device: (9, 0),
            "tpgpt2_ref.kernels.clusters.nvrtc._nvrtc": lambda: None}
    for name, value in (here | patches).items():
        monkeypatch.setattr(name, value)
    assert nvrtc.why_not(torch.device("cuda")) == message
    assert nvrtc.why_not(torch.device("cpu")) == "cpu is no GPU of NVIDIA's"


SHAPES = [
    (dict(n_head=6), "the cluster kernels take heads of 64, not 32"),
    (dict(n_head=33, n_embd=64 * 33),
     "the cluster kernels take a hidden size that is a multiple of 64, up to 2048, not 2112"),
    (dict(n_inner=648), "the cluster kernels take a rank's hidden units by 32, not 648"),
    ({}, None),
]


@pytest.mark.parametrize("change, message", SHAPES)
def test_why_a_model_cannot(monkeypatch, change, message):
    config = replace(SMALL, n_layer=1, vocab_size=64, n_positions=16, **change)
    model = build_model(config)
    assert misfit(model) == message
    assert why_no_clusters(model) == "cpu is no GPU of NVIDIA's"
    monkeypatch.setattr(nvrtc, "why_not", lambda device: None)
    assert why_no_clusters(model) == message


def test_why_ranks_cannot(monkeypatch):
    monkeypatch.setattr(nvrtc, "why_not", lambda device: None)
    model, gathers = build_model(replace(SMALL, n_layer=1), world=World(0, 2)), SimpleNamespace(gathers=True)
    assert why_no_clusters(model) == "the cluster kernels write into every rank's memory, which these ranks can't"
    model.world.all_reduces = (gathers,)
    assert why_no_clusters(model) is None


@pytest.mark.parametrize("name", FAMILY)
def test_which_of_the_family_fit(name):
    """All of GPT-2 does, on one rank; on several where the MLP's part is whole units."""
    config: GPT2Config = FAMILY[name]
    assert config.head_size != 64 or config.n_embd % 64 == 0 and config.inner % UNITS == 0


# --- the places of a source


def test_every_place_has_a_name():
    """In the order of the source, what `gather` marks between the places before and after it."""
    shared = re.findall(r"^  MARK\((\d+)\)", (cache.SOURCE / "step.cuh").read_text(), re.M)
    for kernel, places in phases.PLACES.items():
        text = (cache.SOURCE / f"{kernel}.cu").read_text()
        before, after = (re.findall(r"MARK\((\d+)\)", part) for part in text.split("  gather(p.from"))
        assert [*before, *shared, *after] == [str(number) for number in places], kernel
        assert len(set(places.values())) == len(places)


@emulator
def test_phases(model):
    """The emulator's clock goes on from place to place, in every block and so in what is said of all of them."""
    found = list(phases.sweep(model, "random:small", "bfloat16", 1, 20, 2, load, CLUSTERS))
    assert [(r["kernel"], r["place"]) for r, _ in found] == [
        (kernel, place) for kernel, places in phases.PLACES.items() for place in places.values()]
    for kernel in phases.PLACES:
        mine = [row for row, _ in found if row["kernel"] == kernel]
        assert mine[0]["min_ns"] == 0 and mine[0]["blocks"] == Shape.of(model, 1, 16).grid(kernel)
        for a, b in zip(mine, mine[1:]):
            assert all(a[f"{what}_ns"] < b[f"{what}_ns"] for what in ("median", "max"))
        assert all(r["min_ns"] <= r["median_ns"] <= r["max_ns"] and len(us) == 2
                   for r, us in found) and mine[0]["clock_step_ns"] > 0


@pytest.mark.parametrize("argv, message", [
    (("--prompt-len", 9), "no cluster kernels here: cpu is no GPU of NVIDIA's"),
    (("--batch", 3), "--batch 3: the cluster kernels take 1, 2 or 4 rows"),
    (("--prompt-len", 128), "--prompt-len must be between 1 and 127"),
])
def test_phases_as_a_command(argv, message):
    done = run_cli("bench", "phases", "--model", "random:gpt2-test", "--device", "cpu", *argv)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""

"""Decode steps of cluster kernels on GPUs: against their twins at GPT-2's real sizes, a thousand times over with warps
that sleep at random, ten thousand tokens against gpt2.py in float32, and among ranks. On a CPU: `test_clusters.py`."""
from __future__ import annotations

import shutil
import subprocess
import sys
from array import array
from dataclasses import replace
from functools import partial

import pytest
import torch

from tpgpt2_ref.config import FAMILY
from tpgpt2_ref.engine import Engine, SamplingParams
from tpgpt2_ref.engine.cluster_step import why_no_clusters
from tpgpt2_ref.engine.engine import prompt_logits
from tpgpt2_ref.engine.graph import CapturedStep
from tpgpt2_ref.engine.ladder import LADDER
from tpgpt2_ref.kernels.clusters import nvrtc
from tpgpt2_ref.kernels.clusters.shape import Shape
from tpgpt2_ref.noise import gumbel, seed_of
from tpgpt2_ref.parallel.world import World

from .cluster_cases import SMALL, Row, build_model, follow, side_by_side
from .conftest import ROOT, on_ranks

RUNGS = {rung.name: rung for rung in LADDER}
CUDA = torch.device("cuda", 0)
compiled = partial(nvrtc.compiled, device=CUDA)


@pytest.fixture(autouse=True)
def a_gpu_for_them():
    if why := nvrtc.why_not(CUDA):
        pytest.skip(why)


def of(name: str, layers: int, **change):
    return replace(FAMILY[name], n_layer=layers, eos_token_id=None, **change)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl"])
def test_kernels_are_their_twins_at_real_sizes(name, batch):
    model = build_model(of(name, 2), "bfloat16", World.single("cuda"), loud=1.0)
    for i, contexts in enumerate([(128, 0, 17, 1), (1023, 256, 511, 5), (255, 3, 1000, 16)]):
        rows = [Row(b + 1, cached) for b, cached in enumerate(contexts[:batch])]
        ranks = side_by_side([model], rows, compiled, scramble=i, temperature=i % 2 * 0.8)
        errors = follow(ranks, lambda kernel, how, late: kernel.launch(**how))
        print(name, batch, contexts[:batch], {kernel: f"{e:.1e}" for kernel, e in errors.items()})
        flips = errors.pop("rounded otherwise")
        assert flips < 1e-3 and max(errors.values()) < (2e-3 if flips else 5e-5), errors


@pytest.mark.gpu
def test_the_same_bits_in_any_batch_on_the_gpu():
    model = build_model(of("gpt2", 2), "bfloat16", World.single("cuda"), loud=1.0)
    row, found = Row(9, 300), []
    for rows in ([row], [row, Row(2, 900)], [Row(3, 0), Row(4, 17), row, Row(5, 5, live=False)]):
        (rank,) = side_by_side([model], rows, compiled, scramble=len(rows))
        rank.step()
        b = rows.index(row)
        pages = rank.state.block_table[b].long()
        found.append([rank.step.keys.amax(0)[b], *(cache[:, pages].view(torch.int16) for cache in rank.caches)])
    assert all(map(torch.equal, found[0], found[1])) and all(map(torch.equal, found[0], found[2]))


@pytest.mark.gpu
@pytest.mark.parametrize("flagged, batch", [(False, 1), (False, 4), (True, 2)])
def test_a_thousand_steps_in_which_warps_sleep(monkeypatch, flagged, batch):
    """In a graph with early starts: all bits are those of a step in which nobody sleeps."""
    monkeypatch.setattr(Shape, "flagged", flagged)
    model = build_model(of("gpt2", 2), "bfloat16", World.single("cuda"), loud=1.0)
    rows = [Row(b + 1, cached) for b, cached in enumerate((300, 1000, 17, 0)[:batch])]
    (rank,) = side_by_side([model], rows, lambda name, defines: compiled(name, defines | {"LOITER": True}))
    (rested,) = side_by_side([model], rows, compiled)

    def left(rank):
        last = rank.shape.kernels - 2
        return [rank.step.keys.amax(0), rank.state.ids, rank.state.positions, *rank.caches,
                rank.slots(last, rank.shape.clusters), rank.slots(last - 1, rank.shape.heads)]

    rested.step()
    wanted = [t.clone(memory_format=torch.contiguous_format) for t in left(rested)]
    before, wrong = [t.clone() for t in (rank.state.ids, rank.state.positions)], torch.zeros((), device=CUDA)

    def step():
        rank.state.ids.copy_(before[0]), rank.state.positions.copy_(before[1])
        rank.step()
        for got, want in zip(left(rank), wanted):
            wrong.add_((got.contiguous().view(torch.int16) != want.view(torch.int16)).any())

    captured = CapturedStep(step)
    for _ in range(1000):
        captured.replay()
    assert int(wrong) == 0 and int(rank.stream.step) == 1002 and int(rank.stream.failed) == 0


def judged(truth, prompt, new, params) -> torch.Tensor:
    """How far each new token's score lies below the best one in float32, in deviations of the logits: (len(new),)."""
    logits = prompt_logits(truth, prompt + new[:-1])[len(prompt) - 1:]
    spread = logits.std()
    if params.temperature:
        positions = torch.arange(len(prompt), len(prompt) + len(new), device=CUDA)
        seeds = torch.full_like(positions, seed_of(params.seed, array("q", prompt)))
        tokens = torch.arange(logits.shape[1], dtype=torch.int32, device=CUDA)
        logits = logits + params.temperature * gumbel(seeds, positions, tokens)
    chosen = logits.gather(1, torch.tensor(new, device=CUDA)[:, None])[:, 0]
    return (logits.amax(1) - chosen) / spread


def truth_of(model):
    truth = build_model(model.config, "float32", World.single("cuda"), loud=1.0, backend="NAIVE")
    for p, q in zip(truth.parameters(), model.parameters()):
        p.copy_(q)
    return truth


@torch.inference_mode()
def forced(engine, prompt, text, params) -> list[int]:
    """What a rung's step makes of each token of a text, after which it is given the text's own."""
    (s,) = engine.add([prompt], len(text), params.seed)
    engine.step(params)  # the prefill
    state, step = engine._decoder().step_for(1, False)
    s.new[:] = [text[0]]
    engine.decoder.fill(state, [s], params)
    given = torch.tensor(text, device=CUDA)
    for i in range(len(text) - 1):
        state.ids.copy_(given[i : i + 1])
        step.replay()
    torch.cuda.synchronize()
    engine.scheduler = None
    return [text[0], *state.tokens[0, len(prompt) + 1 : len(prompt) + len(text)].tolist()]


@pytest.mark.gpu
def test_ten_thousand_tokens():
    """To the model's end and again, greedy and sampled: each is float32's best, or so near that rounding explains it,
    and where the rung below would go on otherwise, that is so too."""
    model = build_model(of("gpt2", 12), "bfloat16", World.single("cuda"), loud=1.0)
    truth, engine, below = truth_of(model), Engine(model), Engine(model, rung=RUNGS["+pdl"])
    assert engine.rung.clusters
    total, others, worst = 0, 0, 0.0
    for i in range(10):
        prompt, params = [(37 * i + 11 * j) % 50257 for j in range(3 + i)], SamplingParams(0.9 * (i % 2), seed=i)
        (new,) = engine.generate([prompt], 1024, params)
        assert engine.why_no_clusters is None and len(new) == 1024 - len(prompt)
        other = forced(below, prompt, new, params)
        gaps = judged(truth, prompt, new, params)[1:]  # the first is the prefill's
        total, worst = total + len(new), max(worst, float(gaps.max()))
        differ = [k for k, (a, b) in enumerate(zip(new, other)) if a != b]
        others += len(differ)
        assert float(gaps.max()) < 0.04, (i, int(gaps.argmax()), float(gaps.max()))
        assert len(differ) < 0.05 * len(new), (i, len(differ))
    print(f"{total} tokens, the worst {worst:.4f} deviations below the best; the rung below differs in {others}")
    assert total > 10_000


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_rung_has_the_tokens_of_float32_in_batches(dtype):
    model = build_model(of("gpt2", 4), dtype, World.single("cuda"), loud=1.0)
    hold_to_truth(model, texts_of(model))


PROMPTS = [[1, 2, 3], list(range(20, 157)), [5] * 600, [7, 7]]
DRAWS = (SamplingParams(), SamplingParams(0.9, seed=3))


def texts_of(model, new: int = 24):
    """{(rows, which draw): texts} of batches of 1, 2 and 4."""
    engine, texts = Engine(model, rung=RUNGS["+clusters"]), {}
    for rows in (1, 2, 4):
        for k, params in enumerate(DRAWS):
            texts[rows, k] = engine.generate(PROMPTS[:rows], new, params)
    assert engine.why_no_clusters is None and engine.why_eager is None, (engine.why_no_clusters, engine.why_eager)
    return texts


def hold_to_truth(model, texts) -> None:
    truth = truth_of(model)
    for (_, k), of_batch in texts.items():
        for prompt, new in zip(PROMPTS, of_batch):
            gaps = judged(truth, prompt, new, DRAWS[k])
            assert float(gaps[1:].max()) < 0.04, (len(of_batch), k, gaps)


def texts_on_a_rank(world):
    torch.set_grad_enabled(False)
    model = build_model(of("gpt2", 4), "bfloat16", world, loud=1.0)
    return texts_of(model) if (why := why_no_clusters(model)) is None else why


@pytest.mark.parametrize("size", [pytest.param(n, marks=pytest.mark.gpus(n)) for n in (2, 4)])
def test_ranks_on_gpus_of_their_own(size):
    """The same ids on every rank, and float32's wherever rounding leaves no choice."""
    first, *others = on_ranks(size, texts_on_a_rank, device="cuda", timeout=120)
    assert not isinstance(first, str), first
    assert all(other == first for other in others)
    hold_to_truth(build_model(of("gpt2", 4), "bfloat16", World.single("cuda"), loud=1.0), first)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer here")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool):
    done = subprocess.run(["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-m",
                           "tpgpt2_ref.tests.test_clusters_gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def one_small_step() -> None:
    """What the sanitizer watches."""
    torch.set_grad_enabled(False)
    model = build_model(replace(SMALL, n_positions=64), "bfloat16", World.single("cuda"))
    (rank,) = side_by_side([model], [Row(1, 17), Row(2, 60)], compiled)
    for _ in range(2):
        rank.step()
    torch.cuda.synchronize()


if __name__ == "__main__":
    one_small_step()

"""Two halves of a batch in turn give what each gives alone, to the bit, and what the whole gives, to rounding."""
from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpgpt2_ref.engine import Engine
from tpgpt2_ref.engine.graph import CapturedStep, PlainStep
from tpgpt2_ref.engine.halves import Lanes, cut, in_turn, whole, why_whole
from tpgpt2_ref.engine.ladder import LADDER, Rung
from tpgpt2_ref.parallel.all_reduce import all_reduce_beside
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.trace import Trace
from tpgpt2_ref.weights import load_model

from .conftest import on_ranks
from .test_gpu import HEAD_32, SHARE

TWINS = Rung("twins", "every function in plain torch", fused=())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 1024), min_size=1, max_size=12))
def test_the_cut_leaves_the_shortest_longer_half(lengths):
    n = cut(lengths)
    assert n in range(1, len(lengths)) or len(lengths) == 1 and n == 0
    longer = [max(sum(lengths[:i]), sum(lengths[i:])) for i in range(1, len(lengths))]
    assert all(max(sum(lengths[:n]), sum(lengths[n:])) <= other for other in longer)


def test_why_a_batch_stays_whole(monkeypatch):
    model = load_model("random:gpt2-test", World.single())
    assert "no sum" in why_whole([5, 5], model)
    model.world.size = 2
    assert "one prompt" in why_whole([5], model)
    monkeypatch.setattr("tpgpt2_ref.engine.halves.WORTH", {model.world.size: 5 * 64 * 4})
    assert why_whole([5, 6], model) is None and "1,024 bytes, and pay from 1,280" in why_whole([4, 50], model)


class Diary(Lanes):
    """Lanes that write down what is enqueued in which."""

    def __init__(self):
        super().__init__(World.single())
        self.lines, self.at = [], ""

    def fork(self):
        self.lines.append("fork")

    def lane(self, i):
        self.at = f"lane {i}"
        return super().lane(i)

    def sum(self, partial, layer):
        self.lines.append(f"{self.at}: sum {layer}")
        return partial + 1

    def join(self):
        self.lines.append("join")


def test_a_half_computes_while_the_others_sum_is_under_way():
    diary = Diary()

    def layers(name):
        x = 0
        for i in range(2):
            diary.lines.append(f"{diary.at}: compute {name}{i}")
            x = yield x, f"{name}{i}"
        return x

    assert in_turn([layers("A"), layers("B")], diary) == [2, 2]
    assert diary.lines == ["fork", *(f"lane {lane}: {what} {'AB'[lane]}{i}" for i in range(2) for lane in (0, 1)
                                     for what in ("compute", "sum")), "join"]


def batches(seed: int, longest: int) -> list[list[list[int]]]:
    """Prompts of uneven lengths: 1 (nothing to cut), 2, 3 and 8, and one long beside short ones."""
    rng = random.Random(seed)
    shapes = [[rng.randint(1, longest) for _ in range(batch)] for batch in (1, 2, 3, 8)] + [[longest, 1, 2], [1, 1]]
    return [[[rng.randrange(256) for _ in range(n)] for n in lengths] for lengths in shapes]


def in_halves_and_whole(world, name, capture, dtype, replays):
    """For each batch: (logits in halves, what each half's layers give alone), the whole's logits, cache differences,
    and the sums of one prefill in halves."""
    model, found = load_model(name, world, dtype=dtype), []
    rung = TWINS if capture is PlainStep else LADDER[-1]
    two, one = (Engine(model, rung=rung, capture=capture, halves=halves) for halves in (True, False))
    for prompts in batches(3, 128):
        got = []
        for engine in (two, one):
            engine.add(prompts, 1)
            sequences = engine.scheduler.admit()
            with torch.inference_mode():
                eager = engine._prefill(sequences).clone()  # a bucket's first batch is gpt2.py's
                got += [[engine._prefill(sequences).clone() for _ in range(replays)]]
            assert engine.prefilling.why_not is None, engine.prefilling.why_not
        bucket, parts = next(reversed(two.prefills.buckets.values())), two.prefills.parts(sequences)
        with torch.inference_mode():
            alone = [whole(part.layers(two.kv_caches, two.prefills.kernels), world) for part in bucket.parts]
            bucket.logits = model.logits(torch.cat(alone))
        same = all(torch.equal(bucket.of_prompts(parts), again) for again in got[0])
        held = sorted(page for s in sequences for page in s.blocks)
        cache = max(float((a - b)[:, held].abs().max()) for a, b in zip(two.kv_caches, one.kv_caches))
        world.trace = Trace()
        with torch.inference_mode():
            bucket.run()
        sums = [(row.op, row.layer) for row in world.trace.finish()]
        parts = [stage.part for stage in world.trace.stages]
        world.trace = None
        scale = float(eager.abs().max())
        found.append({"parts": len(bucket.parts), "same": same, "cache": cache, "sums": sums, "computes": parts,
                      "from_whole": float((got[0][-1] - got[1][-1]).abs().max()) / scale,
                      "from_gpt2": float((got[0][-1] - eager).abs().max()) / scale})
        two.close(), one.close()
    return found


def hold(ranks, tolerance):
    assert ranks[0] == ranks[1] or tolerance > 1e-3  # on GPUs caches differ by rank: their errors do
    layers = [layer for i in range(2) for layer in (f"h.{i}.attn.c_proj", f"h.{i}.mlp.c_proj")]
    for rank in ranks:
        assert [found["parts"] for found in rank] == [1, 2, 2, 2, 2, 2]
        for found in rank:
            assert found["same"] and max(found["from_whole"], found["from_gpt2"], found["cache"]) < tolerance
            in_order = [layer for layer in ("wte", *layers) for _ in range(found["parts"])]
            assert found["sums"] == [*(("all_reduce", layer) for layer in in_order), ("all_gather", "lm_head")]
            assert found["computes"] == (["A", "B"] * 5 if found["parts"] > 1 else [""] * 5)


def test_halves_on_two_ranks():
    """The halves are each one's own to the bit; beside the whole batch, products of other shapes round differently."""
    hold(on_ranks(2, in_halves_and_whole, "random:gpt2-test", PlainStep, "float32", 2), 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_halves_in_graphs(checkpoint, dtype):
    """Sums on a stream of their own, in a CUDA graph, again and again. Where there is one GPU, two ranks share it."""
    shape = dict(HEAD_32, n_positions=128)  # a smaller head is FlexAttention's, whose prefill is not for graphs
    folder = str(checkpoint(device="cuda", **shape)[0])
    hold(on_ranks(2, in_halves_and_whole, folder, CapturedStep, dtype, 20, device="cuda", env=SHARE, timeout=180), 5e-2)


def sums_beside(world):
    """The sum that runs beside products, against the group's own, for tensors of many sizes, in turn."""
    algorithm, wrong = all_reduce_beside(world), []
    for i, n in enumerate((1, 8, 1000, 1 << 20, 3, 6 << 20, 1 << 20)):
        x = torch.randn(n, dtype=torch.bfloat16, device=world.device,
                        generator=torch.Generator(world.device).manual_seed(100 * world.rank + i))
        want = world.all_reduces[-1](x.clone())
        if not torch.equal(algorithm(x), want):
            wrong.append(n)
    return algorithm.name, wrong, all_reduce_beside(world) is algorithm


@pytest.mark.gpus(2)
def test_copies_sum_like_nccl():
    assert on_ranks(2, sums_beside, device="cuda", timeout=120) == [("copies", [], True)] * 2

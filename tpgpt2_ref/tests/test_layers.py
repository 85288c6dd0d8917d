"""The parallel layers and collectives on real gloo ranks, against the same layer on one rank."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpgpt2_ref.errors import RankError
from tpgpt2_ref.parallel.collectives import (
    all_gather,
    all_reduce,
    broadcast,
    reduce_scatter,
    split_tensor_along_last_dim,
)
from tpgpt2_ref.parallel.embedding import ParallelLMHead, VocabParallelEmbedding
from tpgpt2_ref.parallel.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.trace import Trace

from .conftest import on_ranks

T, D, OUT, HEADS, VOCAB = 5, 24, 42, 6, 101


def matrices():
    g = torch.Generator().manual_seed(7)
    return {n: torch.randn(*s, generator=g) for n, s in {
        "x": (T, D), "w": (D, OUT), "b": (OUT,), "back": (OUT, D), "bias": (D,), "qkv": (D, 3 * D), "qkv_b": (3 * D,),
        "wte": (VOCAB, D)}.items()}


def diagram_3(world):
    rank, size = world.rank, world.size
    x = torch.tensor([1.0, 2.0]) + 2 * rank
    whole = torch.arange(4.0 * size)
    b = torch.full((3,), float(rank))
    return {
        "all_gather": all_gather(x, world).tolist(),
        "all_gather_2d": all_gather(torch.full((2, 3), float(rank)), world).tolist(),
        "all_reduce": all_reduce(torch.tensor([1.0, 2.0, 3.0]) + 3 * rank, world).tolist(),
        "split": split_tensor_along_last_dim(whole, world).tolist(),
        "reduce_scatter": reduce_scatter(torch.ones(2 * size, 2) * (rank + 1), world).tolist(),
        "broadcast": broadcast(b, world, src=size - 1).tolist(),
    }


@pytest.mark.parametrize("size", [2, 3])
def test_collectives_do_what_diagram_3_draws(size):
    for rank, got in enumerate(on_ranks(size, diagram_3)):
        assert got["all_gather"] == [float(i) for i in range(1, 2 * size + 1)]  # [1,2] | [3,4] -> [1,2,3,4]
        assert got["all_gather_2d"] == [[float(r) for r in range(size) for _ in range(3)]] * 2
        total = 3 * sum(range(size))
        assert got["all_reduce"] == [size * v + total for v in (1.0, 2.0, 3.0)]
        assert got["split"] == [float(i) for i in range(4 * rank, 4 * rank + 4)]
        assert got["reduce_scatter"] == [[size * (size + 1) / 2] * 2] * 2
        assert got["broadcast"] == [size - 1.0] * 3
        if size == 2:
            assert got["all_reduce"] == [5.0, 7.0, 9.0]  # the diagram's own numbers


def test_an_imagined_rank_talks_to_nobody():
    world = World.single().imagine(4)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert all_reduce(x, world).tolist() == x.tolist()
    assert all_gather(x, world).tolist() == [[1.0, 2.0] * 4, [3.0, 4.0] * 4]
    assert reduce_scatter(x.repeat(2, 1), world).tolist() == [[1.0, 2.0]] and broadcast(x, world, src=3) is x
    assert not World.single().imagine(1).imagined


def layers(world):
    m, out = matrices(), {}
    with torch.no_grad():
        column = ColumnParallelLinear(D, OUT, world)
        column.load(m["w"], m["b"])
        gathered = ColumnParallelLinear(D, OUT, world, gather_output=True, multiple=8)
        gathered.load(m["w"], m["b"])
        out["column"], out["gathered"] = column(m["x"]), gathered(m["x"])

        row = RowParallelLinear(OUT, D, world)
        row.load(m["back"], m["bias"])
        whole_input = RowParallelLinear(OUT, D, world, input_is_parallel=False)
        whole_input.load(m["back"], m["bias"])
        partial = RowParallelLinear(OUT, D, world, reduce_results=False)
        partial.load(m["back"], m["bias"])
        out["row"], out["row_split"] = row(out["column"]), whole_input(gathered(m["x"]))
        out["partial"] = partial(out["column"])

        qkv = QKVParallelLinear(D, D // HEADS, HEADS, world)
        qkv.load(m["qkv"], m["qkv_b"])
        out["qkv"] = qkv(m["x"])

        wte = VocabParallelEmbedding(VOCAB, D, world)
        wte.load(m["wte"])
        out["wte"] = wte(torch.tensor([0, 1, 50, 99, 100]))
        out["logits"] = ParallelLMHead(VOCAB, D, world, wte.weight)(m["x"])
    return {k: v.clone() for k, v in out.items()}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_layers_equal_the_matrices_they_split(size):
    m = matrices()
    y = m["x"] @ m["w"] + m["b"]
    ranks = on_ranks(size, layers) if size > 1 else [layers(World.single())]
    close = torch.testing.assert_close
    for got in ranks:
        close(got["gathered"], y)
        for name in ("row", "row_split"):
            close(got[name], y @ m["back"] + m["bias"])
        close(got["wte"], m["wte"][[0, 1, 50, 99, 100]])
        close(got["logits"], m["x"] @ m["wte"].T)
        assert got["logits"].shape == (T, VOCAB)  # no padding in sight
    close(torch.cat([r["column"] for r in ranks], -1)[:, :OUT], y)
    close(sum(r["partial"] for r in ranks), y @ m["back"] + m["bias"])  # the bias is counted once
    full = m["x"] @ m["qkv"] + m["qkv_b"]
    for i, want in enumerate(full.chunk(3, -1)):  # q, k, v, in the order of the heads
        close(torch.cat([r["qkv"].chunk(3, -1)[i] for r in ranks], -1)[:, :D], want)


def test_a_world_without_algorithms_says_so():
    with pytest.raises(RankError, match="no all-reduce algorithm of this world takes"):
        all_reduce(torch.ones(2), World(rank=0, size=2))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(1, 9), wide=st.integers(1, 70), multiple=st.sampled_from([1, 2, 8]), heads=st.integers(1, 13),
       head_size=st.sampled_from([1, 4]))
def test_shards_put_together_are_the_whole(size, wide, multiple, heads, head_size):
    """Any sizes, any number of ranks: every element stands on one rank, in order, and padding is zero."""
    def ranks(make, *whole):
        made = [make(World(rank, size)) for rank in range(size)]
        for layer in made:
            layer.load(*whole)
        return made

    w, b = 1 + torch.rand(3, wide), 1 + torch.rand(wide)
    column = ranks(lambda world: ColumnParallelLinear(3, wide, world, multiple=multiple), w, b)
    for whole, parts in ((w.T, [r.weight for r in column]), (b, [r.bias for r in column])):
        assert torch.equal(torch.cat(parts)[:wide], whole) and not torch.cat(parts)[wide:].any()
    row = torch.cat([r.weight for r in ranks(lambda world: RowParallelLinear(wide, 3, world, multiple=multiple), w.T,
                                             b[:1].expand(3))], 1)
    assert torch.equal(row[:, :wide], w) and not row[:, wide:].any()
    d = heads * head_size
    w, b = 1 + torch.rand(2, 3 * d), 1 + torch.rand(3 * d)
    qkv = ranks(lambda world: QKVParallelLinear(2, head_size, heads, world), w, b)
    for i, whole in enumerate(w.T.chunk(3)):
        part = torch.cat([r.weight.chunk(3)[i] for r in qkv])
        assert torch.equal(part[:d], whole) and not part[d:].any()
    rows = ranks(lambda world: VocabParallelEmbedding(wide, 2, world), torch.ones(wide, 2))
    wte = torch.cat([r.weight for r in rows])
    assert wte[:wide].all() and not wte[wide:].any()


def test_split_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="does not split over 2 ranks"):
        split_tensor_along_last_dim(torch.zeros(3, 5), World(rank=0, size=2))


def traced(world):
    world.trace = Trace()
    layers(world)
    return world.trace.counts(), [(r.op, r.bytes, r.dtype, r.path) for r in world.trace.finish()][:1]


def test_the_trace_counts_what_layers_move():
    for counts, first in on_ranks(2, traced):
        # gathered twice (once as the row layer's input), logits once; two rows summed, one embedding
        assert counts == {"all_gather": 3, "all_reduce": 3}
        assert first == [("all_gather", T * 24 * 4, "float32", "gloo")]

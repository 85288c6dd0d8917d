"""The recorder: what it counts, what it times, what it agrees with, and what it costs when it is off."""
from __future__ import annotations

import time

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from tpgpt2_ref.attention.kv_cache import allocate_kv_cache
from tpgpt2_ref.config import FAMILY
from tpgpt2_ref.cost.simulate import fake_forward
from tpgpt2_ref.engine.decode_step import decode_step
from tpgpt2_ref.kernels import Kernels
from tpgpt2_ref.kernels.state import DecodeState
from tpgpt2_ref.parallel.all_reduce import AllReduce
from tpgpt2_ref.parallel.collectives import all_gather, all_reduce, broadcast, reduce_scatter
from tpgpt2_ref.parallel.fake import fake_world
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.trace import Collective, Trace, now
from tpgpt2_ref.weights import load_model

from .conftest import on_ranks
from .push_over_gloo import PushOverGloo
from .test_gpt2 import TINY


def test_spans_nest_and_start_with_the_first():
    trace = Trace()
    start = now(False)
    with trace.collective("all_reduce", torch.zeros(3, 4, dtype=torch.bfloat16), "gloo", "h.0.attn.c_proj"):
        time.sleep(0.002)
    trace.stage("h.0.attn", start, now(False))
    (row,) = trace.finish()
    assert (row.op, row.bytes, row.dtype, row.path, row.layer) == ("all_reduce", 24, "bfloat16", "gloo",
                                                                   "h.0.attn.c_proj")
    (stage,) = trace.stages
    assert stage.start_us == 0 and row.start_us > 0
    assert 2000 <= row.microseconds <= stage.microseconds and row.end_us <= stage.end_us
    assert [r.start_us for r in trace.finish()] == [row.start_us]  # finishing twice changes nothing


def test_an_empty_trace_finishes():
    assert Trace().finish() == [] and Trace().counts() == {}


def test_it_agrees_with_CommDebugMode_on_1024_ranks():
    with fake_world(1024) as world, CommDebugMode() as seen:
        world.trace, x = Trace(), torch.zeros(1024, 8, device="meta")
        for op in (all_reduce, all_gather, all_gather, reduce_scatter, broadcast):
            op(x, world, layer="here")
        theirs = {str(op).removeprefix("c10d.").strip("_"): n for op, n in seen.get_comm_counts().items()}
    assert theirs == {"allreduce": 1, "allgather_base": 2, "reduce_scatter_base": 1, "broadcast": 1}, theirs
    assert world.trace.counts() == {"all_reduce": 1, "all_gather": 2, "reduce_scatter": 1, "broadcast": 1}
    assert {r.path for r in world.trace.rows} == {"fake"} and {r.bytes for r in world.trace.rows} == {1024 * 8 * 4}


@pytest.mark.parametrize("size", [2, 3, 1024])
@pytest.mark.parametrize("plan, gathers", [("shipped", 1), ("as-drawn", 1 + 3 * 12)])
def test_a_12_layer_forward(size, plan, gathers):
    """25 + 1 for the plan that ships; the diagram's gathers q, k and v in every layer besides."""
    config, tokens = FAMILY["gpt2"], 5
    rows = fake_forward(config, size, plan, tokens)
    sums, gathered = ([r for r in rows if r.op == op] for op in ("all_reduce", "all_gather"))
    assert len(sums) == 25 and len(gathered) == gathers and len(rows) == 25 + gathers
    assert [r.layer for r in sums[:3]] == ["wte", "h.0.attn.c_proj", "h.0.mlp.c_proj"]
    assert {r.bytes for r in sums} == {tokens * 768 * 2} and gathered[-1].layer == "lm_head"
    heads = -(-12 // size)
    assert {r.bytes for r in gathered[:-1]} <= {tokens * heads * 64 * 2}
    assert gathered[-1].bytes == -(-50257 // (64 * size)) * 64 * 2


def decode_steps(world, folder):
    """(tokens untraced, tokens traced, rows) of decode steps of 3 sequences, first over gloo, then with fused sums."""
    model, found = load_model(str(folder), world), []
    config, heads = model.config, model.impl.num_heads
    kv = allocate_kv_cache(config.n_layer, 1, 16, heads, config.head_size, torch.float32, "cpu")
    for algorithms in (world.all_reduces, (PushOverGloo(world), *world.all_reduces)):
        world.all_reduces, tokens = algorithms, []
        for world.trace in (None, Trace()):
            state = DecodeState.empty(3, heads, 32, torch.device("cpu"))
            state.ids.copy_(torch.tensor([1, 200, 30]))
            with torch.inference_mode():
                decode_step(model, kv, state, Kernels.choose((), fused_sum=True))
            tokens.append(state.ids.tolist())
        found.append((*tokens, world.trace.finish()))
    return found


@pytest.mark.parametrize("layers", [2, 12])
def test_a_decode_steps_fused_sums_and_gather_are_seen(checkpoint, layers):
    """2L + 1 sums and a gather whoever carries them out: 25 + 1 at 12 layers."""
    shape = dict(TINY, n_layer=layers)
    names = ["wte", *(f"h.{i}.{part}.c_proj" for i in range(layers) for part in ("attn", "mlp")), "lm_head"]
    with_norm = [None, *["bias, residual, LayerNorm"] * 2 * layers, None]
    shape = dict(TINY, n_layer=layers)
    for by_gloo, by_push in on_ranks(2, decode_steps, checkpoint(**shape)[0]):
        for (untraced, traced, rows), path, fused in ((by_gloo, "gloo", [None] * len(names)),
                                                      (by_push, "push", with_norm)):
            assert [(r.op, r.layer) for r in rows] == [*(("all_reduce", name) for name in names[:-1]),
                                                       ("all_gather", "lm_head")]
            assert {(r.bytes, r.dtype) for r in rows[:-1]} == {(3 * shape["n_embd"] * 4, "float32")}
            assert (rows[-1].bytes, rows[-1].dtype) == (3 * 8, "int64")
            assert {r.path for r in rows} == {path} and [r.fused for r in rows] == fused
            assert all(r.microseconds > 0 for r in rows) and untraced == traced == by_gloo[0]


def test_off_it_costs_one_comparison():
    """A world without a trace makes no row, no event and no context manager."""
    with fake_world(2) as world:
        world.all_reduces = (Instant(),)
        x = torch.zeros(4)

        def bare():
            return world.all_reduces[0](x)

        def door():
            return all_reduce(x, world)

        assert world.trace is None
        assert best(door) - best(bare) < 2e-6


class Instant(AllReduce):
    """An all-reduce algorithm that takes no time, so that only the door is left to measure."""

    name = "instant"

    def takes(self, x):
        return True

    def __call__(self, x):
        return x


def best(call, repeats=50, calls=200):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return min(times)


@pytest.mark.gpu
@pytest.mark.alone
def test_events_time_the_gpu_eager_and_in_a_graph():
    """A kernel of known length inside a collective's span: the events see it, also when a graph replays it."""
    x = torch.zeros(8, device="cuda")
    cycles = 2_000_000  # about a millisecond

    def spin(trace):
        start = now(True)
        with trace.collective("all_reduce", x, "spin", "here"):
            torch.cuda._sleep(cycles)
        trace.stage("stage", start, now(True))

    spin(Trace())  # the first launch loads the kernel
    eager = Trace()
    spin(eager)
    (row,) = eager.finish()
    assert 200 < row.microseconds < 20_000 and eager.stages[0].microseconds >= row.microseconds

    replayed, graph = Trace(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spin(replayed)
    for _ in range(3):
        graph.replay()
        (row_g,) = replayed.finish()
        assert row_g.microseconds == pytest.approx(row.microseconds, rel=0.3)
    assert isinstance(row_g, Collective)


def test_one_rank_records_nothing():
    world = World.single()
    world.trace = Trace()
    all_reduce(torch.ones(2), world)
    assert world.trace.rows == []

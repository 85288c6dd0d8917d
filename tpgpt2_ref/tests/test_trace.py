"""The recorder: what it counts, what it times, what it agrees with, and what it costs when it is off."""
from __future__ import annotations

import time

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from tpgpt2_ref.config import FAMILY
from tpgpt2_ref.measure.simulate import fake_forward
from tpgpt2_ref.parallel.all_reduce import AllReduce
from tpgpt2_ref.parallel.collectives import all_gather, all_reduce, broadcast, reduce_scatter
from tpgpt2_ref.parallel.fake import fake_world
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.trace import Collective, Trace, now


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


def test_off_it_costs_one_comparison():
    """A world without a trace makes no row, no event and no context manager."""
    with fake_world(2) as world:
        world.sums = (Instant(),)
        x = torch.zeros(4)

        def bare():
            return world.sums[0](x)

        def door():
            return all_reduce(x, world)

        assert world.trace is None
        assert best(door) - best(bare) < 2e-6


class Instant(AllReduce):
    """A way to sum that takes no time, so that only the door is left to measure."""

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

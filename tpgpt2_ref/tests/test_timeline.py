"""The timeline: clocks set to each other, waiting told from transfer, stages of a real forward on two ranks."""
from __future__ import annotations

import json
import time

import pytest
import torch

from tpgpt2_ref.bench import timeline
from tpgpt2_ref.bench.step import make_rung_step, make_step
from tpgpt2_ref.cli import main
from tpgpt2_ref.engine.decode_graph import is_hopper
from tpgpt2_ref.engine.ladder import Rung, rungs
from tpgpt2_ref.errors import RankError
from tpgpt2_ref.parallel.collectives import all_reduce, barrier, gather_objects
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.trace import Trace, now
from tpgpt2_ref.weights import load_model

from .conftest import cli_json, on_ranks
from .push_over_gloo import PushOverGloo
from .test_gpu import SHARE


def spans(starts, ends, op="all_reduce"):
    return [timeline._row("T4", "collective", f"h.{i}.attn.c_proj", s, e - s, op, 8, "nccl")
            for i, (s, e) in enumerate(zip(starts, ends, strict=True))]


def two_gpus(skew, jitter=(0.0, 0.0, 0.0)):
    """Rank 0 reaches three sums at 10, 110, 210 and waits 30, 0, 5 us; each takes 20 us more. Rank 1's clock is off."""
    zero = spans([10, 110, 210], [60, 130, 235])
    one = spans([s - skew for s in (40, 100, 215)], [e - skew + j for e, j in zip((60, 130, 235), jitter, strict=True)])
    return [{"spans": s, "origin_us": None, "host": "h"} for s in (zero, one)]


@pytest.mark.parametrize("skew", [0.0, 1234.5, -1e6])
def test_waiting_and_transfer_on_skewed_clocks(skew):
    merged = timeline.merge(two_gpus(skew))
    assert merged["clock_error_us"] == pytest.approx(0, abs=1e-6) and "ends of the collectives" in merged["clock"]
    wait = [[r["wait_us"] for r in merged["rows"] if r["rank"] == rank] for rank in (0, 1)]
    assert wait[0] == pytest.approx([30, 0, 5], abs=1e-6) and wait[1] == pytest.approx([0, 10, 0], abs=1e-6)
    assert [r["transfer_us"] for r in merged["rows"]] == pytest.approx([20] * 6, abs=1e-6)
    assert merged["total_us"] == pytest.approx(225) and merged["counts"] == {"all_reduce": 3}


def test_the_clocks_error_is_what_the_ends_disagree_by():
    merged = timeline.merge(two_gpus(500.0, jitter=(-4.0, 0.0, 4.0)))
    assert 2 <= merged["clock_error_us"] <= 5


def test_ranks_that_ran_different_collectives_have_no_timeline():
    one, other = two_gpus(0.0)
    other["spans"][1]["op"] = "all_gather"
    with pytest.raises(RankError, match="different collectives"):
        timeline.merge([one, other])


def late_rank(world: World):
    """Rank 1 is 30 ms late for the first of nine sums. Returns both ranks' spans, by rank."""
    x, trace = torch.ones(256), Trace()
    world.trace = trace
    barrier(world)
    start = now(False)
    for i in range(9):
        time.sleep(0.03 if (world.rank, i) == (1, 0) else 0.001)
        all_reduce(x, world, f"h.{i}.attn.c_proj")
    trace.stage("h.0.mlp", start, now(False))
    trace.finish()
    mine = {"spans": timeline.spans(trace), "origin_us": timeline._origin_us(trace), "host": timeline._host()}
    return gather_objects(mine, world)


def test_a_late_rank_makes_the_other_wait_by_either_clock():
    """The ranks' own shared clock, and the clock that the collectives set, tell the same story."""
    by_rank, _ = on_ranks(2, late_rank)
    blind = [{**rank, "origin_us": None, "spans": [dict(s) for s in rank["spans"]]} for rank in by_rank]
    shared, found = timeline.merge(by_rank), timeline.merge(blind)
    assert shared["clock_error_us"] == 0 < found["clock_error_us"]
    for merged in (shared, found):
        first = [r for r in merged["rows"] if r["kind"] == "collective" and r["layer"] == "h.0.attn.c_proj"]
        assert first[0]["rank"] == 0 and first[0]["wait_us"] > 20_000 and first[1]["wait_us"] < 10_000


def test_hooks_leave_nothing_behind():
    world = World.single()
    model = load_model("random:gpt2-test", world)
    with timeline.hooks(model, Trace()):
        assert world.trace is not None and model.h[0].attn.c_attn._forward_hooks
    assert world.trace is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_forward_on_one_rank_is_T0_to_T5_in_order():
    model = load_model("random:gpt2-test", World.single())
    for phase in ("prefill", "decode"):
        got = timeline.record(model, make_step(model, phase, 2, 5), repeats=1)
        assert [r["stage"] for r in got["rows"]] == ["embedding", *["T0", "T1", "T2", "T3", "T5", "mlp"] * 2, "head"]
        assert got["communication_share"] == 0 and got["counts"] == {} and got["total_us"] > 0


@pytest.mark.parametrize("plan, gathers", [("shipped", 1), ("as-drawn", 7)])
def test_the_command_on_two_ranks(plan, gathers, tmp_path):
    out = tmp_path / "trace.json"
    got = cli_json("trace", "--model", "random:gpt2-test", "--tp", 2, "--device", "cpu", "--plan", plan, "--out", out)
    assert got["counts"] == {"all_reduce": 5, "all_gather": gathers} and got["plan"] == plan
    rows, sums = got["rows"], [r for r in got["rows"] if r["stage"] == "T4"]
    assert {(r["rank"], r["layer"]) for r in sums} == {(r, f"h.{i}.attn.c_proj") for r in (0, 1) for i in (0, 1)}
    for r in (r for r in rows if r["kind"] == "collective"):
        assert r["wait_us"] + r["transfer_us"] == pytest.approx(r["us"]) and min(r["wait_us"], r["transfer_us"]) >= 0
    order = ["T0", "T1", *["T2"] * (4 if gathers > 1 else 1), "T3", "T4", "T5"]  # the diagram's, on each rank
    for rank in (0, 1):
        mine = [r["stage"] for r in rows if r["rank"] == rank and r["layer"].startswith("h.1.attn")]
        assert mine == order
    assert sum(r["stage"] == "T2" and r["op"] == "all_gather" for r in rows) == 2 * (gathers - 1)
    events = json.loads(out.read_text())["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert {e["pid"] for e in slices} == {0, 1} and all(e["dur"] >= 0 and e["ts"] >= 0 for e in slices)
    assert sum(e["name"] == "all_reduce" for e in slices) == 10
    assert 0 < got["waiting_share"] + got["communication_share"] < 2 and got["machine"]["device"]


def rung_on_a_rank(world, rung, graphs=(False,)):
    """Timelines of a rung's step, eagerly or in a graph; on CPUs over a stand-in for push."""
    if world.device.type == "cpu":
        world.all_reduces = (PushOverGloo(world), *world.all_reduces)
    rung = rung or rungs(world.size, is_hopper(world.device))[-1]
    model = load_model("tiny", world, dtype="float32" if world.device.type == "cpu" else "float16")
    step = timeline.as_a_stage(make_rung_step(model, rung, 3, 20), world)
    return rung.name, model.config.n_layer, [timeline.record(model, step, 3, graph) for graph in graphs]


def hold_a_rungs_timeline(got, layers):
    """2L + 1 sums, of which 2L carry a LayerNorm, and the gather, all within the whole step."""
    assert got["counts"] == {"all_reduce": 2 * layers + 1, "all_gather": 1}
    for rank in (0, 1):
        mine = [r for r in got["rows"] if r["rank"] == rank]
        moved, (step,) = ([r for r in mine if r["kind"] == kind] for kind in ("collective", "compute"))
        assert [r["fused"] for r in moved] == [None, *["bias, residual, LayerNorm"] * 2 * layers, None]
        assert {r["path"] for r in moved} == {"push"} and all(r["us"] > 0 for r in moved)
        assert step["stage"] == "step" and sum(r["us"] for r in moved) < step["us"] <= got["total_us"] * 1.01
    assert "in the same kernel: bias, residual, LayerNorm" in timeline.text(got)


def test_a_rung_of_the_ladder_on_two_ranks():
    rung = Rung("fused sum", "all in plain torch but the sum", fused=(), fused_sum=True)
    for _, layers, (got,) in on_ranks(2, rung_on_a_rank, rung):
        hold_a_rungs_timeline(got, layers)
    with_norm = [e["args"]["fused"] for e in timeline.perfetto(got)["traceEvents"] if "fused" in e.get("args", ())]
    assert len(with_norm) == 2 * 2 * 2 * layers  # two ranks, a sum and its waiting


def test_a_readable_rung_has_gpt2s_stages_and_the_whole():
    model = load_model("random:gpt2-test", World.single())
    rung = Rung("readable", "gpt2.py", readable=True, fused=())
    for batch in (2, 3):
        step = timeline.as_a_stage(make_rung_step(model, rung, batch, 127), model.world)
        got = timeline.record(model, step, repeats=1)
        assert [r["stage"] for r in got["rows"]] == ["step", "embedding", *["T0", "T1", "T2", "T3", "T5", "mlp"] * 2,
                                                     "head"]


def test_a_prefill_in_halves_on_two_ranks(tmp_path):
    """Stages and sums say which half they are of, and what runs under a half's products cuts nothing off them."""
    got = cli_json("trace", "--model", "random:gpt2-test", "--tp", 2, "--device", "cpu", "--rung", "halves", "--batch",
                   3, "--prompt-len", 20, "--out", tmp_path / "trace.json")
    assert got["counts"] == {"all_reduce": 10, "all_gather": 1} and got["rung"] == "halves"
    for rank in (0, 1):
        mine = [r for r in got["rows"] if r["rank"] == rank and r.get("part")]
        for kind, stages in (("compute", {"embedding", "T1-T3", "T1", "mlp"}),
                             ("collective", {"embedding", "T4", "mlp"})):
            of = {part: [r["stage"] for r in mine if (r["kind"], r["part"]) == (kind, part)] for part in "AB"}
            assert of["A"] == of["B"] and set(of["A"]) == stages


@pytest.mark.gpu
def test_the_fastest_rung_over_push_on_gpus_also_in_a_graph():
    """Where there is one GPU, two ranks share it: the counts are right, the times only more than nothing."""
    for name, layers, both in on_ranks(2, rung_on_a_rank, None, (False, True), device="cuda", env=SHARE, timeout=120):
        assert name == "+pdl" or not is_hopper(torch.device("cuda"))
        for got in both:
            hold_a_rungs_timeline(got, layers)


@pytest.mark.parametrize("argv, word", [
    (["--rung", "+pdl"], "--phase decode"), (["--rung", "halves"], "one rank has no sum"),
    (["--phase", "decode", "--rung", "+moon"], "known: eager, graph"),
    (["--phase", "decode", "--rung", "+pdl"], "needs GPUs"),
    (["--graph"], "CUDA graphs"), (["--batch", "0"], "--batch"), (["--prompt-len", "129"], "128 positions"),
    (["--phase", "decode", "--prompt-len", "128"], "128 positions"), (["--out", "/nowhere/trace.json"], "--out"),
])
def test_mistakes_are_one_line_and_status_2(argv, word, capfd):
    assert main(["trace", "--model", "random:gpt2-test", "--device", "cpu", *argv]) == 2
    out, err = capfd.readouterr()
    assert word in err and err.count("\n") == 1 and not out


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("graph", [False, True])
def test_on_a_gpu_also_in_a_graph(graph):
    model = load_model("random:gpt2", World.single("cuda:0"), dtype="bfloat16")
    got = timeline.record(model, make_step(model, "decode", 1, 64), repeats=3, graph=graph)
    stages = [r for r in got["rows"] if r["kind"] == "compute"]
    assert len(stages) == 2 + 4 * 12 and all(0 < r["us"] < 5e4 for r in stages)
    assert sum(r["us"] for r in stages) <= got["total_us"] * 1.01

"""The sweep of Diagram 3: sizes, bandwidths as nccl-tests defines them, answers checked before they are timed."""
from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tpgpt2_ref.bench import collectives as bench
from tpgpt2_ref.bench.stopwatch import captured, microseconds
from tpgpt2_ref.cli import main
from tpgpt2_ref.commands.bench import collectives as command
from tpgpt2_ref.errors import RankError, UserError
from tpgpt2_ref.kernels.clusters import driver
from tpgpt2_ref.parallel.all_reduce import AllReduce
from tpgpt2_ref.parallel.bare import bare
from tpgpt2_ref.parallel.collectives import all_reduce
from tpgpt2_ref.parallel.fake import fake_world
from tpgpt2_ref.parallel.watched import unwatched
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.recorded import results
from tpgpt2_ref.recorded.samples import bandwidth, before, pool, spread
from tpgpt2_ref.trace import OPS

from .conftest import on_ranks, run_cli


def test_sizes_are_read_as_nccl_tests_writes_them():
    assert command.sizes("256,1K,16M,1G") == [256, 1024, 2**24, 2**30]
    assert bench.powers_of_two(256, 2**30) == [2**i for i in range(8, 31)]
    for bad in ("", "1T", "1.5K", "-1", "2", "8G"):
        with pytest.raises(UserError, match="--sizes"):
            command.sizes(bad)
    with pytest.raises(UserError, match="'all_to_all'; known: all_reduce"):
        command.ops("all_reduce,all_to_all")


@pytest.mark.parametrize("op, bus", [("all_reduce", 2 * 3 / 4), ("all_gather", 3 / 4), ("reduce_scatter", 3 / 4),
                                     ("broadcast", 1)])
def test_bandwidth_is_nccl_tests(op, bus):
    """1 MB in 10 us on 4 ranks. nccl-tests' size of an all-gather is its result: 4 MB."""
    size = 4e6 if op == "all_gather" else 1e6
    got = bandwidth(op, 1_000_000, 10.0, 4)
    assert got == {"algbw_gb_per_s": size / 1e4, "busbw_gb_per_s": size / 1e4 * bus}


def test_spread_is_in_order():
    assert spread([float(i) for i in range(1, 12)]) == {"us_median": 6, "us_p10": 2, "us_p90": 10}
    assert set(spread([3.0], "gpu_us").values()) == {3.0}


def test_a_wrong_sum_is_an_error_and_not_a_time():
    """The ranks of a fake world never answer: an all-reduce there leaves this rank's own value."""
    with fake_world(2) as world, pytest.raises(RankError, match="gave .*, not"):
        world.device = torch.device("cpu")
        bench.calls("all_reduce", torch.zeros(8), world, world.all_reduces)


def test_what_is_timed_is_not_posted():
    world = SimpleNamespace(board=(board := SimpleNamespace(off=False)))
    with pytest.raises(KeyError), unwatched(world):
        assert world.board is None and board.off
        raise KeyError
    assert world.board is board and not board.off


class Direct(AllReduce):
    """A algorithm that goes past NCCL, as our own kernels do."""

    name = "direct"

    def __call__(self, x):
        return x.copy_(torch.full_like(x, 3.0))  # 1 + 2, whatever the link is


def past_the_dial(world):
    world.all_reduces = (Direct(), *world.all_reduces)
    return [[row["path"] for row, _ in bench.sweep(world, ("all_reduce",), [256], link=link, samples=3)]
            for link in ("as is", "gloo")]


def test_the_dial_leaves_out_what_it_does_not_turn():
    """A algorithm with a link of its own must not be recorded as if it had gone through host memory or sockets."""
    as_is, turned = on_ranks(2, past_the_dial)[0]
    assert as_is == ["direct", "gloo", "bare gloo"] and turned == ["gloo", "bare gloo"]


def in_rounds(world):
    kept = list(bench.sweep(world, ("all_reduce", "broadcast"), [256, 1024], samples=7, with_bare=False, rounds=3))
    return [(row["op"], row["bytes"], row["us_median"], us) for row, us in kept]


def test_samples_of_several_rounds_are_one_row():
    first, second = on_ranks(2, in_rounds)
    assert first == second and [len(us) for *_, us in first] == [9] * 4
    assert [(op, n) for op, n, *_ in first] == [(op, n) for op in ("all_reduce", "broadcast") for n in (256, 1024)]
    assert all(abs(middle - sorted(us)[4]) < 0.01 for _, _, middle, us in first)


def test_the_command_on_two_gloo_ranks(tmp_path):
    got = run_cli("bench", "collectives", "--tp", 2, "--device", "cpu", "--sizes", "256,64K", "--samples", 3, "--json",
                  "--record", tmp_path)
    assert got.returncode == 0, got.stderr
    result = json.loads(got.stdout)
    run = results.load(result["recorded"])
    assert run.rows == result["rows"] and run.is_this_machine
    assert {(r["op"], r["path"], r["bytes"]) for r in run.rows} == {
        (op, path, n) for op in OPS for path in ("gloo", "bare gloo") for n in (256, 65536)}
    assert all(0 < r["us_p10"] <= r["us_median"] <= r["us_p90"] and r["world"] == 2 for r in run.rows)
    streamed = [json.loads(line) for line in got.stderr.splitlines() if line.startswith('{"row"')]
    assert [s["row"] for s in streamed] == run.rows and all(len(s["us"]) == 3 for s in streamed)
    assert result["door"]["bytes"] == 1536
    again = run_cli("bench", "collectives", "--tp", 2, "--device", "cpu", "--sizes", 256, "--ops", "broadcast",
                    "--samples", 4, "--record", tmp_path, "--add")
    assert again.returncode == 0, again.stderr
    more = results.load(result["recorded"])
    assert [(r["op"], r["path"], r["bytes"]) for r in more.rows] == [(r["op"], r["path"], r["bytes"]) for r in run.rows]
    for row, us in zip(more.rows, results.load_samples(result["recorded"]), strict=True):
        assert len(us) == (7 if (row["op"], row["bytes"]) == ("broadcast", 256) else 3)
        assert spread(us)["us_median"] == row["us_median"]
    path = Path(result["recorded"])
    path.write_text(path.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"'))
    with pytest.raises(UserError, match="differ in torch"):  # before anything is measured
        before(str(tmp_path), run.machine)


def recorded_run(commit, medians, **machine):
    """A run of two samples a row, and its samples."""
    rows = [{"op": "all_reduce", "path": "nccl", "world": 2, "bytes": n, "dtype": "bfloat16", "graph": False,
             "calls": 100, **spread([us, us]), **bandwidth("all_reduce", n, us, 2), "link": "NVLink"}
            for n, us in medians.items()]
    card = results.machine_card() | {"slug": "2x-one", "torch": "2.11.0"} | machine
    run = results.Run("collectives", card, rows, "2026-01-01T00:00:00+00:00", commit)
    return run, [[us, us] for us in medians.values()]


def test_runs_are_pooled_by_case():
    first, second = recorded_run("aaa", {256: 30.0, 512: 31.0}), recorded_run("bbb", {512: 41.0, 1024: 42.0})
    run, samples = pool([first, second])
    assert samples == [[30, 30], [31, 31, 41, 41], [42, 42]] and run.commit == "bbb"
    assert [(r["bytes"], r["us_median"], r.get("commit")) for r in run.rows] == [
        (256, 30, "aaa"), (512, 36, "aaa, bbb"), (1024, 42, None)]
    assert run.rows[1]["algbw_gb_per_s"] == round(512 / 36 / 1e3, 6)
    third, samples = pool([(run, samples), recorded_run("bbb", {512: 41.0})])
    assert third.rows[1]["commit"] == "aaa, bbb" and len(samples[1]) == 6
    for other, word in (({"torch": "2.13.0"}, "differ in torch"), ({"slug": "4x-one"}, "different machines")):
        with pytest.raises(UserError, match=word):
            pool([first, recorded_run("bbb", {512: 41.0}, **other)])


def test_samples_of_another_run_are_refused(tmp_path):
    run, samples = recorded_run("aaa", {256: 30.0})
    path = results.save(run, tmp_path, samples)
    assert results.load_samples(path) == samples
    raw = path.parent / "raw" / path.name
    raw.write_text(raw.read_text().replace("2026-01-01", "2025-01-01"))
    with pytest.raises(UserError, match="not those of"):
        results.load_samples(path)
    raw.unlink()
    with pytest.raises(UserError, match="cannot read the samples"):
        results.load_samples(path)


@pytest.mark.parametrize("argv, word", [
    (["--sizes", "huge"], "--sizes huge"), (["--tp", "1"], "at least 2 ranks"), (["--samples", "1"], "--samples"),
    (["--ops", "scatter"], "known: all_reduce"), (["--add"], "say --record too"),
])
def test_mistakes_are_one_line_and_status_2(argv, word, capfd):
    assert main(["bench", "collectives", "--device", "cpu", *argv]) == 2
    out, err = capfd.readouterr()
    assert word in err and err.count("\n") == 1 and not out


def test_the_door_enqueues_the_bare_call_and_no_more():
    """What torch is asked for, operation by operation. A copy on the way would be one more."""
    class Asked(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            ops.append((str(op), args[-2:]))
            return op(*args, **(kwargs or {}))

    with fake_world(2) as world:
        x, asked = torch.zeros(8, 6, device="meta"), []
        for call in (lambda: all_reduce(x, world), bare("all_reduce", x, world), lambda: all_reduce(x.T, world)):
            ops = []
            with Asked():
                call()
            asked.append(ops)
    assert asked[0] == asked[1] and [name for name, _ in asked[0]] == ["c10d.allreduce_.default"]
    assert len(asked[2]) > 1


def nodes(call) -> list[tuple]:
    """What a graph of ten calls in a row holds: each node's kind, and a kernel's grid, block and shared memory."""
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(10):
            call()
    raw, count = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    driver.call("cuGraphGetNodes", raw, None, ctypes.byref(count))
    held = (ctypes.c_void_p * count.value)()
    driver.call("cuGraphGetNodes", raw, held, ctypes.byref(count))
    found = []
    for node in map(ctypes.c_void_p, held):
        kind, launch = ctypes.c_int(), (ctypes.c_uint32 * 32)()  # CUDA_KERNEL_NODE_PARAMS_v2: a pointer, 7 numbers, ...
        driver.call("cuGraphNodeGetType", node, ctypes.byref(kind))
        if kind.value == KERNEL:
            driver.call("cuGraphKernelNodeGetParams_v2", node, launch)
        found.append((kind.value, *launch[2:9]))
    return sorted(found)


KERNEL = 0  # CU_GRAPH_NODE_TYPE_KERNEL


def graphs_of_the_door(world):
    x, nccl = torch.ones(768, dtype=torch.bfloat16, device=world.device), world.all_reduces[-1]
    calls = [lambda: all_reduce(x, world, algorithm=nccl), bare("all_reduce", x, world),
             lambda: all_reduce(x.clone(), world, algorithm=nccl)]
    calls[1]()  # NCCL opens its channels, and with the first capture it begins to order graphs and eager calls
    nodes(calls[1])
    return [nodes(call) for call in calls]


@pytest.mark.gpus(2)
def test_a_graph_of_the_door_is_a_graph_of_the_bare_call():
    """Node by node, so that both take the same time but for where a capture happens to lie. A copy would be seen."""
    for door, bare_call, copied in on_ranks(2, graphs_of_the_door, device="cuda", timeout=120):
        assert door == bare_call and sum(kind == KERNEL for kind, *_ in door) >= 10
        assert len(copied) == len(door) + 10


@pytest.mark.gpus(2)
def test_nccl_at_a_gigabyte_is_the_bare_calls():
    """Eager and in a graph: our door moves 1 GiB within 2 % of torch.distributed's own call, and adds <= 2 us."""
    got = run_cli("bench", "collectives", "--tp", "2", "--device", "cuda", "--sizes", "1G", "--ops", "all_reduce",
              "--json")
    assert got.returncode == 0, got.stderr
    result = json.loads(got.stdout)
    at = {(r["path"], r["graph"]): r["busbw_gb_per_s"] for r in result["rows"]}
    for graph in (False, True):
        assert at["nccl", graph] == pytest.approx(at["bare nccl", graph], rel=0.02)
    assert result["door"]["overhead_us"] <= 2


@pytest.mark.gpu
@pytest.mark.alone
def test_a_graph_times_the_calls_it_holds():
    """One rank is enough to see that a graph of n calls takes n times one call."""
    world, cycles = World.single("cuda:0"), 200_000

    def call():
        torch.cuda._sleep(cycles)

    us = {n: microseconds(captured(call, n), world.device) / n for n in (2, 20)}
    assert us[20] == pytest.approx(us[2], rel=0.25)

"""The all-reduce algorithms: what each says of itself, values, equal bits on every rank, CUDA graphs, silent peers,
bytes that cross.

`push` is tested four times: its protocol as a state machine (`test_push_model.py`), its kernels as compiled, on a CPU
(`test_push_ptx.py`), with all ranks as streams of one process on one GPU (`test_push.py`), and here, among processes,
on a GPU for each or all on one (slow, by time slices).
"""
from __future__ import annotations

import hashlib
from functools import partial
from importlib import import_module
from statistics import median
from types import SimpleNamespace

import pytest
import torch

from tpgpt2_ref.bench.stopwatch import captured, microseconds
from tpgpt2_ref.errors import RankError, UserError
from tpgpt2_ref.parallel.all_reduce import ALGORITHMS, LIMITS, RECKONED, AllReduce, all_reduces, explain, limit, push
from tpgpt2_ref.parallel.all_reduce.symmetric import aligned
from tpgpt2_ref.parallel.collectives import barrier
from tpgpt2_ref.parallel.fake import fake_world
from tpgpt2_ref.recorded import results
from tpgpt2_ref.tests.conftest import on_ranks

DTYPES = ("float16", "bfloat16", "float32")
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}  # half a unit in the last place, relative
TOKEN = 768  # GPT-2's width


# ---- what each algorithm says of itself ----

def test_every_way_is_one_line():
    for name, target in ALGORITHMS.items():
        module, cls = target.split(":")
        algorithm = getattr(import_module(f"tpgpt2_ref.parallel.all_reduce.{module}"), cls)
        assert issubclass(algorithm, AllReduce)
        assert name == "c10d" or algorithm.name == name
    assert set(LIMITS) <= set(ALGORITHMS) - {"c10d"}
    assert limit("push", 2) == LIMITS["push"][2] and limit("push", 3) == LIMITS["push"][4]
    assert limit("c10d", 2) == float("inf")


def test_limits_that_nobody_measured_are_said_to_be_reckoned():
    sizes = sorted(LIMITS["push"])
    recorded = [n for n in sizes if (results.BOOK_RESULTS / f"{n}x-nvidia-h200" / "collectives.json").is_file()]
    assert all(sorted(of) == sizes for of in LIMITS.values()) and sorted([*recorded, *RECKONED]) == sizes
    for size in (*range(2, 9), 9):
        said = [word for name, word in explain(size, 1536).items() if "up to" in word]
        assert all(word.endswith("reckoned, not measured") == (4 < size <= 8) for word in said)
        assert len(said) == (len(LIMITS) if size <= 8 else 0)


@pytest.mark.parametrize("size", [n for n in LIMITS["push"] if n not in RECKONED])
def test_limits_are_where_the_recorded_rows_cross(size):
    """Up to its limit an algorithm is never slower than those behind it; at the next recorded size it is, or can't."""
    rows = results.load(results.BOOK_RESULTS / f"{size}x-nvidia-h200" / "collectives.json").rows
    us = {}  # bytes -> algorithm -> microseconds
    for r in rows:
        if (r["op"], r["world"], r["graph"]) == ("all_reduce", size, True):
            us.setdefault(r["bytes"], {})[{"nccl": "c10d"}.get(r["path"], r["path"])] = r["us_median"]
    for i, name in enumerate(LIMITS):
        behind = list(ALGORITHMS)[i + 1:]
        wins = [n for n in sorted(us) if name in us[n] and us[n][name] <= min(us[n][b] for b in behind if b in us[n])]
        unbroken = [n for n, size_of_grid in zip(wins, sorted(us)) if n == size_of_grid]
        assert LIMITS[name][size] == (unbroken or [0])[-1], name  # 0: no rows are recorded


def test_what_auto_says_of_a_size():
    said = explain(4, 3 * 2**20)
    assert list(said) == list(ALGORITHMS) and said["c10d"] == "takes any size"
    assert said["push"].startswith("leaves 3,145,728 bytes") and said["two_shot"].startswith("takes")


def test_without_gpus_only_the_group_itself_sums():
    with fake_world(2) as world:
        assert [algorithm.name for algorithm in all_reduces(world)] == ["fake"]
        with pytest.raises(UserError, match="cannot sum with push: it needs"):
            all_reduces(world, "push")
        with pytest.raises(UserError, match="known: auto, push"):
            all_reduces(world, "carrier pigeon")


def test_push_says_which_tensors_it_takes():
    algorithm = object.__new__(push.PushAllReduce)
    algorithm.box, algorithm.limit = SimpleNamespace(rows=4), 3 * push.ROW_BYTES
    tensors = {n: torch.empty(n // 2, dtype=torch.bfloat16) for n in (0, 16, 24, 1536, 3 * 8192, 4 * 8192, 5 * 8192)}
    assert [n for n, x in tensors.items() if algorithm.can(x)] == [16, 1536, 3 * 8192, 4 * 8192]
    assert [n for n, x in tensors.items() if algorithm.takes(x)] == [16, 1536, 3 * 8192]
    assert not algorithm.can(torch.empty(16, dtype=torch.int64))
    assert algorithm.fuses(torch.empty(4, 4096, dtype=torch.float16)) and not algorithm.fuses(torch.empty(4, 4096))
    assert not algorithm.fuses(torch.empty(5, 768)) and not algorithm.fuses(torch.empty(1, 770, dtype=torch.float16))


def test_tensors_that_no_vector_load_can_read_are_copied():
    whole = torch.arange(64.0)
    for x in (whole[1:33], whole.view(8, 8).T, whole[::2]):
        y = aligned(x)
        assert torch.equal(x, y) and y.is_contiguous() and y.data_ptr() % 16 == 0
    assert aligned(whole) is whole


def test_plain_twin_of_the_fused_kernel():
    g = torch.Generator().manual_seed(0)
    total, residual = torch.randn(2, 3, TOKEN, generator=g).unbind()
    bias, weight, shift = torch.randn(3, TOKEN, generator=g).unbind()
    normed, new = push.add_norm(total, bias, residual, weight, shift, 1e-5)
    h = (total.double() + bias.double() + residual.double())
    want = (h - h.mean(-1, True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * weight + shift
    assert torch.allclose(new.double(), h, atol=1e-5) and torch.allclose(normed.double(), want, atol=1e-4)


# ---- every algorithm, among processes ----

def numbers(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype)).cuda()


def assert_sum(got: list, inputs: list, dtype: str):
    """Every rank's result has the same bits and is the fp64 sum, rounded once (fp32: once for each addition)."""
    exact = sum(x.double() for x in inputs)
    scale = sum(x.double().abs() for x in inputs)
    for g in got:
        assert torch.equal(g.view(torch.uint8), got[0].view(torch.uint8))
    error = ((got[0].double() - exact).abs() - EPS[dtype] * exact.abs()).max()
    assert error <= (len(inputs) * EPS["float32"] * scale).max(), f"{dtype}: {error}"


def rank_sums(world, name: str) -> dict:
    """On each rank: sums of many sizes, eagerly and from a CUDA graph, checked against fp64; -> digest of the bits."""
    algorithm, digest, done = all_reduces(world, name)[0], hashlib.sha256(), set()
    for dtype in DTYPES:
        large = (40 << 20,) if name == "two_shot_push" else ()  # more than its mailbox takes at once
        for nbytes in (16, 1536, 24_576, 196_608, 1_572_864, *large):
            x = torch.zeros(nbytes // getattr(torch, dtype).itemsize, dtype=getattr(torch, dtype), device=world.device)
            if not algorithm.can(x):
                continue
            done.add(dtype)
            inputs = [numbers(x.numel(), dtype=dtype, seed=r) for r in range(world.size)]
            got = [algorithm(inputs[world.rank].clone())]
            torch.cuda.synchronize()
            barrier(world)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = algorithm(x + 0)
            x.copy_(inputs[world.rank])
            for replay in range(3):
                if replay == world.rank:
                    torch.cuda._sleep(2_000_000)  # one rank is late
                graph.replay()
                got.append(result.clone())
            torch.cuda.synchronize()
            graph.reset()  # before the group ends
            exact = sum(i.double() for i in inputs)
            for g in got:
                assert (g.double() - exact).abs().max() <= 8 * world.size * EPS[dtype]
                digest.update(g.view(torch.uint8).cpu().numpy().tobytes())
            if "push" in name:
                assert_sum(got, inputs, dtype)
    algorithm.check()
    algorithm.close()
    return {"digest": digest.hexdigest(), "dtypes": sorted(done)}


EXPECTED = {"push": sorted(DTYPES), "two_shot_push": sorted(DTYPES), "one_shot": ["bfloat16", "float32"],
            "two_shot": ["bfloat16", "float32"], "c10d": sorted(DTYPES)}


def check_way(name, size, env=None):
    reports = on_ranks(size, rank_sums, name, device="cuda", env=env, timeout=240)
    assert all(r["dtypes"] == EXPECTED[name] for r in reports)
    assert len({r["digest"] for r in reports}) == 1, f"{name}: ranks hold different bits"


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("name", ALGORITHMS)
def test_way_on_one_shared_gpu(name):
    check_way(name, 2, env={"TPGPT2_SHARE_GPU": "1"})


@pytest.mark.parametrize("size", [pytest.param(n, marks=pytest.mark.gpus(n)) for n in (2, 4, 8)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_way_on_gpus_of_their_own(name, size):
    check_way(name, size)


def rank_skips_a_call(world) -> str:
    """Rank 1 leaves one call out; rank 0 must notice, name it, and not hang."""
    algorithm = all_reduces(world, "push")[0]
    x = torch.ones(TOKEN, dtype=torch.float16, device=world.device)
    algorithm(x)  # both, with the compilation
    torch.cuda.synchronize()
    algorithm.box.timeout, heard = 1.0, "nothing"
    barrier(world)
    if world.rank == 0:
        algorithm(x)
        torch.cuda.synchronize()
        try:
            algorithm.check()
        except RankError as e:
            heard = str(e)
    barrier(world)
    algorithm.close()
    return heard


@pytest.mark.gpu
@pytest.mark.alone
def test_a_rank_that_skips_a_call_is_named():
    heard = on_ranks(2, rank_skips_a_call, device="cuda", env={"TPGPT2_SHARE_GPU": "1"}, timeout=120)
    assert heard == ["rank 0: rank 1 sent nothing for 1 s; results since then are wrong", "nothing"]


def nvlink_bytes_out(world) -> int | None:
    """Payload that this rank's GPU has sent over all of its NVLinks so far; None where the driver does not count."""
    import pynvml as n

    n.nvmlInit()
    gpu = n.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(world.device).uuid}".encode())
    value = n.nvmlDeviceGetFieldValues(gpu, [(n.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, 0xFFFFFFFF)])[0]
    return value.value.ullVal * 1024 if value.nvmlReturn == n.NVML_SUCCESS else None


def rank_counts_bytes(world, name: str) -> float | None:
    """Bytes that crossed, over those that `bytes_out` says, in 200 calls of 1 MiB."""
    if nvlink_bytes_out(world) is None:
        return None
    algorithm = all_reduces(world, name)[0]
    x = torch.zeros(1 << 19, dtype=torch.bfloat16, device=world.device)
    algorithm(x)
    torch.cuda.synchronize()
    barrier(world)
    before = nvlink_bytes_out(world)
    for _ in range(200):
        algorithm(x)
    torch.cuda.synchronize()
    barrier(world)
    crossed = nvlink_bytes_out(world) - before
    algorithm.close()
    return crossed / (200 * algorithm.bytes_out(x.nbytes, world.size))


@pytest.mark.gpus(2)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_bytes_that_cross_are_as_many_as_said(name):
    for ratio in on_ranks(2, rank_counts_bytes, name, device="cuda", timeout=240):
        if ratio is None:
            pytest.skip("this machine's driver does not count NVLink bytes")
        most = 2.1 if name == "c10d" else 1.3  # NCCL's LL protocol sends a flag beside every four bytes
        assert 0.95 < ratio < most, f"{name}: {ratio:.2f} times the payload crossed"


def rank_times_push(world) -> dict[int, float]:
    """{bytes: microseconds a call}, calls in a row in a CUDA graph."""
    algorithm, out = all_reduces(world, "push")[0], {}
    for nbytes in (1536, 12_288, 49_152, 98_304):
        x = torch.zeros(nbytes // 2, dtype=torch.bfloat16, device=world.device)
        replay = captured(partial(algorithm, x), 100)
        barrier(world)
        out[nbytes] = median(microseconds(replay, world.device) / 100 for _ in range(20))
        del replay  # before the group ends
    algorithm.close()
    return out


@pytest.mark.gpus(2)
def test_push_between_two_hopper_gpus_takes_three_microseconds_and_a_half():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the bound is for two Hopper GPUs over NVLink")
    for times in on_ranks(2, rank_times_push, device="cuda", timeout=120):
        assert max(times.values()) <= 3.5, times

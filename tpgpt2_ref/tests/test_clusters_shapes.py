"""What shapes cluster kernels take, why a model or a machine can't have them, and the places of their sources."""
from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpgpt2_ref.bench import phases
from tpgpt2_ref.config import FAMILY, GPT2Config
from tpgpt2_ref.engine.cluster_step import why_no_clusters
from tpgpt2_ref.kernels.clusters import cache, nvrtc
from tpgpt2_ref.kernels.clusters.shape import BLOCKS, MOST_ROWS, THREADS, UNITS, Shape, misfit
from tpgpt2_ref.kernels.clusters.step import Stream
from tpgpt2_ref.parallel.world import World

from .cluster_cases import CLUSTERS, SMALL, build_model, emulator, load
from .conftest import run_cli


@pytest.fixture(scope="module")
def model():
    return build_model()


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

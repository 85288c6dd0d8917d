"""Every name of `chip.cuh`, in small kernels (`chip.cu`): on the GPU, and in the emulator, which must find mistakes.

What stands between a source and a launch is `test_clusters_build.py`'s."""
from __future__ import annotations

import ctypes
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tpgpt2_ref.kernels.clusters import cache, nvrtc
from tpgpt2_ref.kernels.clusters.emulated import emulated, why_no_emulator

SOURCE = Path(__file__).with_name("chip.cu")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the driver and the emulator are for Linux and macOS")
BOTH = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Params(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in ("source", "more", "out", "extra")),
                ("count", ctypes.c_uint32), ("fault", ctypes.c_uint32)]


class Chip:
    """Kernels of `chip.cu` in one place, "cpu" or "cuda"."""

    def __init__(self, place: str):
        self.device = torch.device(place)
        self.seeds = range(6 if place == "cpu" else 1)

    def kernel(self, name: str, dtype=torch.bfloat16):
        defines = {"HALF": dtype == torch.float16}
        if self.device.type == "cpu":
            return emulated(SOURCE, defines, name)
        return nvrtc.compiled(SOURCE, defines, self.device, name)

    def launch(self, name: str, tensors, dtype=torch.bfloat16, grid=1, cluster=1, threads=32, shared=0, count=0,
               fault=0, **chance):
        params = Params(*(None if t is None else t.data_ptr() for t in tensors), count=count, fault=fault)
        self.kernel(name, dtype).launch(grid, cluster, threads, shared, params, **chance)

    def chance(self):
        """Launches to make: one, or one for each seed of the emulator."""
        return [{"seed": seed} for seed in self.seeds] if self.device.type == "cpu" else [{}, {}]


@pytest.fixture(scope="module")
def cache_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def chip(request, cache_home):
    """Each of the two places in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def emulator(cache_home):
    if why := why_no_emulator():
        pytest.skip(why)
    return Chip("cpu")


@pytest.fixture(scope="module")
def gpu(cache_home):
    if why := nvrtc.why_not(torch.device("cuda")):
        pytest.skip(why)
    return Chip("cuda")


@pytest.mark.parametrize("dtype", BOTH.values(), ids=BOTH)
def test_products(chip, dtype):
    torch.manual_seed(0)
    a, b = (torch.randn(rows, 16, device=chip.device).to(dtype) for rows in (16, 8))
    c = torch.randn(16, 8, device=chip.device)
    for chance in chip.chance():
        out = c.clone()
        chip.launch("products", (a, b, out, None), dtype, **chance)
        torch.testing.assert_close(out.double(), c.double() + a.double() @ b.double().T, rtol=0, atol=1e-5)


def exchange(chip, cluster=4, fault=0, late=False, clusters=3, **chance):
    """(what `exchange` leaves, what it should leave)."""
    torch.manual_seed(0)
    source, more = (torch.randn(clusters, cluster, 64, 4, device=chip.device) for _ in range(2))
    out = torch.full_like(source, torch.nan)
    chance |= {"late": (source,)} if late else {}
    chip.launch("exchange", (source, more, out, None), grid=clusters * cluster, cluster=cluster, threads=64,
                shared=3 * 1024 + 512 + 16, count=cluster, fault=fault, **chance)
    sums = more.roll(-1, dims=1).view(clusters, cluster, 2, 32, 4).sum(3, keepdim=True).expand(-1, -1, -1, 32, -1)
    want = source.flip(2).roll(1, dims=1)
    want[..., :2] += sums.reshape(want.shape)[..., :2]
    return out, want


@pytest.mark.parametrize("cluster", [1, 4, 16])
def test_blocks_of_a_cluster_send_to_each_other(chip, cluster):
    for chance in chip.chance()[:None if cluster == 4 else 2]:
        torch.testing.assert_close(*exchange(chip, cluster, **chance))


def numbers(dtype) -> torch.Tensor:
    """Floats at all finite 16-bit numbers, half-way to the next, and one float below and above that: (n, 2)."""
    values = torch.arange(-1 << 15, 1 << 15).to(torch.int16).view(dtype).float()
    values = values[values.isfinite()].unique()
    half = (values[1:].double() + values[:-1].double()).div(2).float()
    around = [half.nextafter(torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    extreme = torch.tensor([torch.inf, -torch.inf, torch.nan, 3.4e38, -3.4e38, 65519.0, 65520.0, 1e-45, -0.0])
    found = torch.cat([values, half, *around, extreme])
    return found[:len(found) // 2 * 2].view(-1, 2)


@pytest.mark.parametrize("dtype", BOTH.values(), ids=BOTH)
def test_formats_of_16_bits(chip, dtype):
    floats = numbers(dtype).to(chip.device)
    bits = torch.arange(-1 << 15, 1 << 15, device=chip.device).to(torch.int16).view(dtype)
    bits = bits.repeat(len(floats) * 2 // len(bits) + 1)[:len(floats) * 2]
    out, extra = torch.empty_like(floats), torch.empty_like(bits)
    chip.launch("formats", (bits, floats, out, extra), dtype, grid=4, threads=128, count=len(floats))
    torch.testing.assert_close(out.view(-1), bits.float(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(extra, floats.view(-1).to(dtype), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(extra.view(torch.int16)[extra == 0], floats.view(-1).to(dtype).view(torch.int16)[extra == 0])


def test_functions(chip):
    x = torch.linspace(-4, 8, 32, device=chip.device)
    out = torch.empty(8, 32, device=chip.device)
    chip.launch("functions", (x, None, out, None))
    lanes = torch.arange(32, device=chip.device)
    want = [x.exp2(), x.abs().log2(), x.clamp(min=0.5).rsqrt(), x.clamp(max=1), lanes.clamp(max=7).float(),
            x.clamp(min=0.25), x[lanes ^ 3], 1 / x]
    torch.testing.assert_close(out, torch.stack(want), rtol=2e-6, atol=2e-6)


def flags(chip, launch):
    """Checks what `launch(tensors)` of `flags` leaves."""
    source = torch.randn(64, 4, device=chip.device)
    out, extra = torch.empty_like(source), torch.zeros(64 * 8 + 4, dtype=torch.int32, device=chip.device)
    launch((source, None, out, extra))
    want = torch.stack([torch.arange(64.0, device=chip.device), torch.full_like(source[:, 0], 0.5), source[:, 0],
                        source[:, 3]], dim=1)
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    assert extra[-4:].tolist() == [0, 127 << 8, 256, 0]  # the largest key in 64 bits, and how many counted


def test_flags_beside_values(chip):
    for chance in chip.chance():
        flags(chip, lambda tensors: chip.launch("flags", tensors, grid=2, cluster=2, threads=64, **chance))  # noqa: B023


def test_flags_of_another_launch(emulator):
    """Two emulators in two threads, as the kernels of two ranks."""
    def launch(tensors):
        with ThreadPoolExecutor() as ranks:
            for done in [ranks.submit(emulator.launch, "flags", tensors, threads=64, count=count) for count in (1, 2)]:
                done.result()

    for _ in range(5):
        flags(emulator, launch)


# --- mistakes that a GPU does not tell


WAITS = r"nobody can go on: thread 0 of block \d+ and \d+ more wait in "


@pytest.mark.parametrize("fault, message", [
    (3, WAITS + r"wait\(shared \+ 3584\) for 16 bytes"),
    (4, r"send to block \d+, whose barrier may not be set up: no cluster barrier lies between"),
    (5, r"(its block ends while bytes are on their way to it|send to block \d+, which has ended)"),
    (7, "its block ends without wait_for_previous"), (8, "its block wrote beside its memory"),
    (9, "it touches memory that is not there, or not so aligned, at 0x9"),
    (10, r"nobody can go on: .*thread 7 of block \d+ waits in __syncthreads"),
    (11, r"send at shared \+ \d+, no multiple of 16"),
    (12, r"block \d+ is sent more bytes than its barrier at shared \+ 3584 expects|send to block \d+, which has ended"),
])
def test_mistakes_are_told_at_every_seed(emulator, fault, message):
    for seed in range(4):
        with pytest.raises(RuntimeError, match=message) as told:
            exchange(emulator, fault=fault, seed=seed)
        assert str(told.value).startswith(f"exchange, seed {seed}: ")


def test_what_is_read_too_early_is_nan(emulator):
    """A copy before its wait, and what an earlier kernel writes before wait_for_previous."""
    torch.testing.assert_close(*exchange(emulator, late=True))
    for seed in emulator.seeds:
        assert exchange(emulator, fault=1, seed=seed)[0][..., 0].isnan().any()
        assert exchange(emulator, fault=6, late=True, seed=seed)[0][..., 0].isnan().all()


def test_a_missing_barrier_is_found_by_some_seed(emulator):
    found = [exchange(emulator, fault=2, clusters=1, seed=seed)[0].isnan().any() for seed in emulator.seeds]
    assert any(found)


def test_lanes_of_a_warp_that_part(emulator):
    out = torch.zeros(16, 16)
    with pytest.raises(RuntimeError, match="it is in (mma|__syncwarp), other lanes of its warp in (__syncwarp|mma)"):
        emulator.launch("products", (out, out, out, None), fault=1)


def test_the_same_seed_makes_the_same_mistake(emulator):
    told = []
    for seed in (1, 1, 2, 3):
        with pytest.raises(RuntimeError) as e:
            exchange(emulator, fault=5, clusters=5, seed=seed)
        told.append(str(e.value).partition(": ")[2])
    assert told[0] == told[1] and len(set(told)) > 1


@pytest.mark.parametrize("launch, message", [
    (dict(grid=6, cluster=4), "no such launch"), (dict(threads=40), "no such launch"),
    (dict(shared=228 * 1024), "no such launch"),
    (dict(params=(ctypes.c_int * 2)()), "takes 40 bytes of parameters, not 8"),
])
def test_launches_that_the_chip_refuses(emulator, launch, message):
    whole = dict(grid=4, cluster=4, threads=32, shared=0, params=Params()) | launch
    with pytest.raises(RuntimeError, match=message):
        emulator.kernel("functions").launch(**whole)
    with pytest.raises(RuntimeError, match=r"no KERNEL\(other\)"):
        emulated(SOURCE, {"HALF": False}, "other").launch(1, 1, 32, 0, Params())


# --- from a source to a launch


def test_the_emulator_has_every_name():
    """But for the two that turn an address of shared memory into what PTX wants."""
    chip, cpu = ((cache.SOURCE / file).read_text() for file in ("chip.cuh", "emulate.h"))
    names = set(re.findall(r"DEVICE \w[\w ]* (\w+)\(", chip)) - {"at", "in_block"}
    assert len(names) > 20 and not {name for name in names if not re.search(rf"\b{name}\(", cpu)}


def test_a_source_that_does_not_compile(emulator, tmp_path):
    (bad := tmp_path / "bad.cu").write_text("int x = MISSING;")
    with pytest.raises(RuntimeError, match="bad.cu does not compile:\n.*MISSING"):
        emulated(bad)
    with pytest.raises(FileNotFoundError, match="no kernel source"):
        emulated("missing")


@pytest.mark.gpu
def test_kernels_in_a_graph_that_start_early(gpu):
    kernel = gpu.kernel("exchange")
    tensors = [torch.randn(12, 64, 4, device="cuda") for _ in range(2)] + [torch.empty(12, 64, 4, device="cuda")]
    shape, graph = dict(grid=12, cluster=4, threads=64, shared=3600), torch.cuda.CUDAGraph()
    params = [Params(tensors[0].data_ptr(), tensors[1].data_ptr(), tensors[2].data_ptr(), None, 4, 0),
              Params(tensors[2].data_ptr(), tensors[1].data_ptr(), tensors[0].data_ptr(), None, 4, 0)]
    before = tensors[0].clone()
    for p in params:
        kernel.launch(**shape, params=p)
    once = tensors[0].clone()
    tensors[0].copy_(before)
    with torch.cuda.graph(graph):
        for p in params * 10:
            kernel.launch(**shape, params=p, pdl=True)
    graph.replay()
    ten = tensors[0].clone()
    tensors[0].copy_(before)
    for p in params * 10:
        kernel.launch(**shape, params=p)
    assert once.isfinite().all() and torch.equal(ten, tensors[0])
    assert kernel.registers > 0 and kernel.local_bytes == 0 and kernel.max_active_clusters(**shape) >= 3
    with pytest.raises(RuntimeError, match="takes 40 bytes of parameters, not 8"):
        kernel.launch(**shape, params=(ctypes.c_int * 2)())
    with pytest.raises(RuntimeError, match=r"cuLaunchKernelEx: CUDA_ERROR_\w+ \("):
        kernel.launch(**(shape | {"threads": 96}), params=params[0])  # more than __launch_bounds__ allows

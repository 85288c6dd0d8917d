"""What stands between a kernel's source and its launch: the compilers, the cache, the driver's structures."""
from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tpgpt2_ref.config import FAMILY
from tpgpt2_ref.cost.forward import local_vocab
from tpgpt2_ref.kernels.clusters import cache, driver, nvrtc
from tpgpt2_ref.kernels.clusters.shape import Shape

SOURCE = Path(__file__).with_name("chip.cu")
INCLUDE = next((folder for folder in (Path(os.path.realpath(shutil.which("nvcc") or "/")).parent / "../include",
                                      Path("/usr/local/cuda/include")) if (folder / "cuda.h").is_file()), None)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the driver and the emulator are for Linux and macOS")
nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")


@pytest.fixture
def nvrtc_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        nvrtc._nvrtc()
    except OSError as e:
        pytest.skip(f"no NVRTC here: {e}")


def test_nvrtc_compiles_once_and_tells_what_is_wrong(nvrtc_here, tmp_path):
    ingredients = nvrtc._ingredients(SOURCE, {"HALF": True})
    name, text, heads, options = ingredients
    assert "-DHALF=1" in options
    first, start = nvrtc.cubin(name, text, dict(heads), options), time.perf_counter()
    assert first[:4] == b"\x7fELF" and nvrtc.cubin(name, text, dict(heads), options) == first
    assert time.perf_counter() - start < 0.1
    assert [f.name.split("-")[0] for f in cache.folder().iterdir()] == ["chip"]
    with pytest.raises(RuntimeError, match="bad.cu does not compile:\n.*MISSING"):
        nvrtc.cubin("bad.cu", "int x = MISSING;", {}, options)
    (bad := tmp_path / "bad.cu").write_text("int x = MISSING;")
    nvrtc.start(bad)
    with pytest.raises(RuntimeError, match="does not compile"):
        nvrtc._compiling(*nvrtc._ingredients(bad, None)).result()


def test_why_not():
    assert nvrtc.why_not(torch.device("cpu")) == "cpu is no GPU of NVIDIA's"
    if torch.version.cuda is None:
        assert nvrtc.why_not(torch.device("cuda")) == "this torch was built without CUDA"


# --- the cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "tpgpt2_ref" / "kernels"


def builder(content=b"code" * 1000):
    calls = []

    def build():
        calls.append(1)
        return content

    return build, calls


def test_cache_builds_each_thing_once(home):
    build, calls = builder()
    assert [cache.kept("k", [text, ("-DD=8",)], build) for text in "aab"] == [build()] * 3
    assert len(calls) == 3 and home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(f.read_bytes()[:-1]), lambda f: f.write_bytes(b""),
                                    lambda f: f.write_bytes(b"x" + f.read_bytes()[1:])])
def test_a_broken_file_is_built_again(home, damage):
    build, calls = builder()
    cache.kept("k", ["a"], build)
    damage(next(home.iterdir()))
    for _ in range(2):
        assert cache.kept("k", ["a"], build) == b"code" * 1000
    assert len(calls) == 2 and len(list(home.iterdir())) == 1


def test_a_folder_that_cannot_be_had_costs_only_the_cache(home, tmp_path):
    (tmp_path / "home").write_text("a file in the way")
    build, calls = builder()
    assert [cache.kept("k", ["a"], build) for _ in range(2)] == [b"code" * 1000] * 2 and len(calls) == 2


def test_a_folder_that_others_can_write_to_is_not_used(home):
    build, calls = builder()
    cache.kept("k", ["a"], build)
    home.chmod(0o777)
    cache.kept("k", ["a"], build)
    assert cache.folder() is None and len(calls) == 2


def test_many_write_at_once(home):
    barrier, got = threading.Barrier(8), []

    def build():
        barrier.wait(timeout=10)  # all have found nothing
        return os.urandom(8) * 100_000  # as compilers whose output differs

    threads = [threading.Thread(target=lambda: got.append(cache.kept("k", ["a"], build))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 8 and cache.kept("k", ["a"], lambda: pytest.fail("not kept")) in got
    assert not list(home.glob(".*"))


# --- against CUDA's own headers and compiler


SHOW = """#include <cuda.h>
#include <stdio.h>
void show(const CUlaunchConfig* c, char* out) {
  out += sprintf(out, "%u %u %u %u %u %u %u %zu %u %zu %zu", c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX,
                 c->blockDimY, c->blockDimZ, c->sharedMemBytes, (size_t)c->hStream, c->numAttrs, sizeof *c,
                 sizeof *c->attrs);
  for (unsigned i = 0; i < c->numAttrs; i++) {
    const CUlaunchAttribute* a = c->attrs + i;
    if (a->id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
      out += sprintf(out, " cluster %u %u %u", a->value.clusterDim.x, a->value.clusterDim.y, a->value.clusterDim.z);
    if (a->id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
      out += sprintf(out, " early %d", a->value.programmaticStreamSerializationAllowed);
  }
}
int attributes[] = {CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
                    CU_FUNC_ATTRIBUTE_NUM_REGS, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED};
"""


@pytest.mark.skipif(INCLUDE is None, reason="no cuda.h here")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
def test_launches_as_cuda_h_reads_them(tmp_path):
    (tmp_path / "show.c").write_text(SHOW)
    built = tmp_path / "show.so"
    subprocess.run(["gcc", "-shared", "-fPIC", f"-I{INCLUDE}", tmp_path / "show.c", "-o", built], check=True)
    library, out = ctypes.CDLL(str(built)), ctypes.create_string_buffer(400)
    for pdl, early in ((True, " early 1"), (False, "")):
        library.show(ctypes.byref(driver.launch_config(96, 8, 256, 100_000, 1 << 40, pdl)), out)
        assert out.value.decode() == f"96 1 1 256 1 1 100000 {1 << 40} {1 + pdl} 56 72 cluster 8 1 1{early}"
    assert list((ctypes.c_int * 4).in_dll(library, "attributes")) == [
        driver.SHARED_SIZE, driver.LOCAL_SIZE, driver.REGISTERS, driver.WIDE_CLUSTERS]


def spills(source: Path, defines, folder: Path) -> list[int]:
    """Bytes of local memory of each kernel of a source, compiled by nvcc for Hopper."""
    options = ["-cubin", f"-arch={nvrtc.ARCHITECTURE}", "-std=c++17", "--resource-usage", f"-I{cache.SOURCE}"]
    done = subprocess.run(["nvcc", *options, *cache.as_options(defines), source, "-o", folder / f"{source.stem}.cubin"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    return [sum(map(int, numbers)) for numbers in found]


@nvcc
def test_nvcc_compiles_the_names(tmp_path):
    assert spills(SOURCE, {"HALF": True}, tmp_path) == [0] * 5


SHAPES = {"gpt2, one row": ("gpt2", dict(batch=1, ranks=1, rank=0)),
          "half of gpt2, four rows": ("gpt2", dict(batch=4, ranks=2, rank=1)),
          "an eighth of gpt2-large": ("gpt2-large", dict(batch=4, ranks=8, rank=7))}  # XL's head needs some


@nvcc
@pytest.mark.parametrize("case", SHAPES)
def test_no_kernel_needs_local_memory(tmp_path, case):
    config, ranks = FAMILY[SHAPES[case][0]], SHAPES[case][1]["ranks"]
    shape = Shape(hidden=config.n_embd, heads=-(-config.n_head // ranks), inner=config.inner // ranks,
                  rows=local_vocab(config, ranks), layers=config.n_layer, page=16, half=ranks > 1, **SHAPES[case][1])
    sources = sorted(cache.SOURCE.glob("*.cu"))
    with ThreadPoolExecutor() as compilers:
        found = compilers.map(lambda source: spills(source, shape.defines(source.stem), tmp_path), sources)
        assert dict(zip(sources, found)) == {source: [0] for source in sources}

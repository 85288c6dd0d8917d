"""The selector of Diagram 1 on machines real and imagined, and every row of Diagram 5."""
from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpgpt2_ref.attention.matrix import DIAGRAM_5, MATRIX, ORDER, PACKAGES
from tpgpt2_ref.attention.platform import KINDS, Platform
from tpgpt2_ref.attention.selector import get_attn_backend, resolve
from tpgpt2_ref.commands import select
from tpgpt2_ref.config import DTYPES
from tpgpt2_ref.errors import UserError

from .conftest import cli_json, run_cli

ALL = frozenset(PACKAGES)
HOPPER = Platform("cuda", (9, 0), (12, 4), ALL)
CPU = Platform("cpu", installed=ALL)

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=12)
versions = st.from_regex(r"[0-9.x٣-]{0,6}", fullmatch=True) | words


@pytest.fixture(autouse=True, scope="module")
def no_environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_ATTENTION_BACKEND", raising=False)
        yield


def choose(platform=HOPPER, head_size=64, dtype="float16", **more):
    return get_attn_backend(12, head_size, dtype, platform=platform, **more)


@pytest.mark.parametrize("row", DIAGRAM_5, ids=lambda row: row.gpu)
def test_every_row_of_diagram_5(row):
    """Every combination that the row lists gets its backend; "Any" is tried where no earlier row applies."""
    fallback = row.head_sizes is None and row.platforms[0].kind == "cuda"
    for platform in row.platforms:
        for head_size in row.head_sizes or (16, 64, 80, 100, 256, 512):
            for dtype in row.dtypes or DTYPES:
                if fallback and head_size in DIAGRAM_5[0].head_sizes and dtype in DIAGRAM_5[0].dtypes:
                    continue
                assert choose(platform, head_size, dtype).backend == row.backends[0], (platform, head_size, dtype)
    for name in row.backends:  # the last column may name several: each runs when asked for
        assert choose(row.platforms[0], 64, "float16", force=name).backend == name


def test_the_environment_overrides_the_platform_and_force_the_environment(monkeypatch):
    for value, backend in {"FLASH_ATTN": "FLASH_ATTN_3", "FLEX_ATTENTION": "FLEX_ATTENTION", "XFORMERS": "XFORMERS",
                           "TRITON": "TRITON_ATTN", "TRITON_ATTN": "TRITON_ATTN"}.items():
        monkeypatch.setenv("VLLM_ATTENTION_BACKEND", value)
        choice = choose()
        assert (choice.backend, choice.source) == (backend, "environment") and value in choice.why
        forced = choose(force="NAIVE")  # set later than the variable, and obeyed: nothing is cached
        assert (forced.backend, forced.source) == ("NAIVE", "force")
    monkeypatch.delenv("VLLM_ATTENTION_BACKEND")
    assert choose().source == "platform"


def test_every_other_backend_has_a_reason():
    for platform in (HOPPER, CPU, Platform("rocm", installed=ALL)):
        choice = choose(platform)
        assert choice.rejected.keys() == MATRIX.keys() - {choice.backend}
        assert all(reasons and all(reasons) for reasons in choice.rejected.values())


@pytest.mark.parametrize("platform, ask, backend, reason", [
    (HOPPER, {"head_size": 80}, "FLASH_ATTN_3", "head size 80: takes 32, 64, 96"),
    (HOPPER, {"dtype": "float32"}, "FLASH_ATTN_3", "dtype float32"),
    (HOPPER, {"block_size": 24}, "FLASH_ATTN_3", "pages of 24 tokens: takes multiples of 16"),
    (HOPPER, {"cache_dtype": "fp8_e4m3"}, "FLASH_ATTN_2", "KV cache in fp8_e4m3"),
    (Platform("cuda", (8, 0), (12, 4), ALL), {}, "FLASH_ATTN_3", "compute capability 8.0: needs SM 9.0"),
    (Platform("cuda", (10, 0), (12, 9), ALL), {}, "FLASH_ATTN_3", "compute capability 10.0: needs SM 9.0"),
    (Platform("cuda", (9, 0), (12, 2), ALL), {}, "FLASH_ATTN_3", "CUDA 12.2: needs 12.3"),
    (Platform("cuda", (9, 0), (12, 4), frozenset()), {}, "FLASH_ATTN_3", "flash-attn-3 or vllm is not installed"),
    (Platform("cuda", (9, 0), (12, 4), frozenset()), {}, "XFORMERS", "pip install xformers"),
    (CPU, {}, "TRITON_ATTN", "runs on cuda and rocm, this is cpu"),
    (HOPPER, {}, "NAIVE", "comes after FLASH_ATTN_3"),
])
def test_reasons_say_what_is_wrong(platform, ask, backend, reason):
    assert any(reason in r for r in choose(platform, **ask).rejected[backend])


def test_flash_attn_means_the_best_one_of_the_machine():
    assert choose(Platform("cuda", (8, 9), (12, 4), ALL), force="FLASH_ATTN").backend == "FLASH_ATTN_2"
    assert choose(Platform("cuda", (10, 0), (12, 9), ALL), force="FLASH_ATTN").backend == "FLASH_ATTN_4"
    assert choose(Platform("cuda", (9, 0), (12, 4), frozenset()), force="FLASH_ATTN").backend == "FLASH_ATTN_2"


@pytest.mark.parametrize("ask, message", [
    ({"force": "FLASH_ATTN", "platform": CPU}, "FLASH_ATTN_2: runs on cuda"),
    ({"force": "XFORMERS", "dtype": "float32"}, "dtype float32"),
    ({"force": "FASTEST"}, "known: FLASH_ATTN"),
    ({"cache_dtype": "int4"}, "unknown KV cache dtype 'int4'; known: auto"),
    ({"head_size": 64.0}, "head size must be a whole number"),
    ({"dtype": "int8"}, "unknown dtype"),
    ({"head_size": 0}, "at least 1"),
])
def test_what_cannot_run_is_the_users_mistake(ask, message):
    with pytest.raises(UserError, match=message):
        choose(**ask)


def test_platforms_are_checked():
    for bad in ({"kind": "tpu"}, {"kind": "cuda"}, {"kind": "cpu", "capability": (9, 0)}):
        with pytest.raises(UserError):
            Platform(**bad)


def test_every_backend_of_the_matrix_resolves_to_its_class():
    ours = {name for name, row in MATRIX.items() if row.implemented}
    assert {name: resolve(name).name for name in ours} == {name: name for name in ours}
    assert set().union(*ORDER.values()) == ours
    assert ORDER["rocm"][:2] == ("TRITON_ATTN", "XFORMERS") and ORDER["cpu"][0] == "NAIVE"


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_bfloat16_waits_for_ampere_and_flashinfer_for_an_implementation(capability):
    machine = Platform("cuda", capability, (12, 9), ALL)
    old = capability < (8, 0)
    assert machine.default_dtype == ("float16" if old else "bfloat16")
    choice = choose(machine, dtype="bfloat16")
    assert (choice.backend == "SDPA") == old  # of what takes a capability of 7, SDPA alone has bfloat16 without Triton
    assert ("needs SM 8.0" in choice.rejected["FLEX_ATTENTION"][0]) == old
    assert choice.rejected["FLASHINFER"][-1] == "this package has no implementation of it"
    assert choose(machine, dtype="float16").backend == ("FLEX_ATTENTION" if old else choice.backend)
    with pytest.raises(UserError, match="FLASHINFER: .*no implementation"):
        choose(machine, force="FLASHINFER")


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({
    "platform": st.none() | st.sampled_from(KINDS) | words, "capability": st.none() | versions,
    "cuda_version": st.none() | versions, "installed": st.none() | words | st.sampled_from(["all", "none,triton"]),
    "head_size": st.integers(), "dtype": words | st.sampled_from(DTYPES), "block_size": st.none() | st.integers(),
    "cache_dtype": st.sampled_from(["auto", "fp8"]) | words, "force": st.none() | words | st.sampled_from([*MATRIX])}))
def test_whatever_is_asked_is_answered_or_refused_in_one_line(query):
    try:
        answer = select.ours(Namespace(version=None, **query))
        assert MATRIX[answer["backend"]].implemented
        assert answer["rejected"].keys() == MATRIX.keys() - {answer["backend"]}
    except UserError as e:
        assert str(e) and "\n" not in str(e)


def run(code, **env):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **env})


def test_a_broken_package_is_a_reason_and_only_the_chosen_package_is_imported(tmp_path):
    """find_spec would say yes to all of these; one of them imports."""
    (tmp_path / "flash_attn_interface.py").write_text("raise OSError('libcudart.so.12: cannot open')")
    (tmp_path / "flash_attn.py").write_text("flash_attn_varlen_func = flash_attn_with_kvcache = None")
    (tmp_path / "xformers.py").write_text("")
    result = run("""
import sys
from tpgpt2_ref.attention.platform import Platform
from tpgpt2_ref.attention.selector import get_attn_backend
choice = get_attn_backend(12, 64, "float16", platform=Platform("cuda", (9, 0), (12, 4), installed=None))
print(choice.backend, "flash_attn" in sys.modules, "xformers" in sys.modules, choice.rejected["FLASH_ATTN_3"][0])
""", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert result.stdout.startswith("FLASH_ATTN_2 True False"), result.stderr
    assert "libcudart.so.12: cannot open" in result.stdout and "pip install vllm" in result.stdout


def test_an_imagined_machine_needs_no_torch():
    result = run("import sys; sys.modules['torch'] = None\n"
                 "from tpgpt2_ref.attention.platform import Platform\n"
                 "from tpgpt2_ref.attention.selector import get_attn_backend\n"
                 "print(get_attn_backend(12, 64, 'float16', platform=Platform('cpu')).rejected)")
    assert "FLASH_ATTN_3" in result.stdout, result.stderr


def test_the_command():
    answer = cli_json("select", "--platform", "cuda", "--capability", "8.9")
    assert answer.keys() == {"backend", "why", "rejected", "source"} and answer["backend"] == "FLASH_ATTN_2"
    result = run_cli("select", "--force", "FLASH_ATTN_3", "--platform", "cpu")
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_the_options_describe_a_machine():
    def imagined(*args):
        parser = ArgumentParser()
        select.add_arguments(parser)
        return select.imagined(parser.parse_args(args))

    assert imagined("--platform", "cuda") == HOPPER == imagined("--installed", "all")
    assert imagined("--capability", "8.0", "--installed", "triton,flash_attn").installed == {"triton", "flash-attn"}
    assert imagined("--installed", "none").installed == imagined("--installed", "torch").installed == frozenset()
    assert imagined("--platform", "rocm") == Platform("rocm", installed=ALL)
    for bad in (("--platform", "cpu", "--capability", "9.0"), ("--installed", "numpy"), ("--capability", "nine")):
        with pytest.raises(UserError):
            imagined(*bad)

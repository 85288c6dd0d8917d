"""What vLLM chooses, by version: known answers, and what must hold of every rule and every query."""
from __future__ import annotations

import json
import re
from argparse import ArgumentParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpgpt2_ref.attention import vllm_rules
from tpgpt2_ref.attention.vllm_rules import select_as
from tpgpt2_ref.commands import select
from tpgpt2_ref.errors import UserError

VERSIONS = vllm_rules.versions()
QUERIES = st.fixed_dictionaries({
    "platform": st.sampled_from(["cuda", "rocm", "cpu"]),
    "capability": st.sampled_from([70, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130]),
    "head_size": st.sampled_from([8, 16, 32, 64, 72, 80, 96, 100, 128, 192, 256, 264, 512, 520]),
    "dtype": st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    "cache_dtype": st.sampled_from(vllm_rules.CACHE_DTYPES),
    "block_size": st.sampled_from([None, 1, 8, 16, 32, 64, 128]),
    "installed": st.none() | st.lists(st.sampled_from(select.VLLM_PACKAGES), unique=True),
    "program": st.none() | st.sampled_from(["FLASH_ATTN", "FLASHINFER", "XFORMERS", "ROCM_ATTN", "TRITON"]),
    "env": st.none() | st.sampled_from(["FLEX_ATTENTION", "TRITON_ATTN", "TREE_ATTN", "CPU_ATTN", "NONSENSE"]),
    "per_kind": st.none() | st.sampled_from(["FLEX_ATTENTION", "TRITON_ATTN"]),
})

# (query, the answers of 0.11.0, 0.11.2, 0.13 and 0.33): backend and FlashAttention's version
KNOWN = [
    ({}, "FLASH_ATTN 3", "FLASH_ATTN 3", "FLASH_ATTN 3", "FLASH_ATTN 3"),
    ({"capability": 80}, *["FLASH_ATTN 2"] * 4),
    ({"capability": 75}, "FLEX_ATTENTION", "FLASHINFER", "FLASHINFER", "TRITON_ATTN"),
    ({"capability": 75, "dtype": "bfloat16"}, "refuses", "refuses", "refuses", "refuses"),
    ({"capability": 100}, "FLASH_ATTN 2", "FLASHINFER", "FLASHINFER", "FLASHINFER"),
    ({"capability": 100, "installed": ["flashinfer"]}, *["FLASHINFER"] * 4),
    ({"capability": 103, "installed": ["flashinfer"]}, "FLASH_ATTN 2", *["FLASHINFER"] * 3),
    ({"capability": 100, "installed": []}, "FLASH_ATTN 2", "FLASH_ATTN 2", "FLASH_ATTN 2", "FLASH_ATTN 4"),
    ({"capability": 120, "installed": []}, *["FLASH_ATTN 2"] * 4),
    ({"head_size": 80}, "FLEX_ATTENTION", "TRITON_ATTN", "FLASH_ATTN 3", "FLASH_ATTN 3"),
    ({"head_size": 512, "installed": []}, "FLEX_ATTENTION", "TRITON_ATTN", "TRITON_ATTN", "FLASH_ATTN 4"),
    ({"dtype": "float32"}, "FLEX_ATTENTION", "TRITON_ATTN", "TRITON_ATTN", "TRITON_ATTN"),
    ({"dtype": "float32", "head_size": 16}, *["FLEX_ATTENTION"] * 4),
    ({"cache_dtype": "fp8"}, *["FLASH_ATTN 3"] * 4),
    ({"cache_dtype": "fp8", "capability": 80, "installed": []}, *["TRITON_ATTN"] * 4),
    ({"cache_dtype": "fp8", "capability": 80}, "TRITON_ATTN", *["FLASHINFER"] * 3),
    ({"cache_dtype": "fp8_e5m2"}, "FLASH_ATTN 3, then fails", "FLASH_ATTN 3, then fails", "FLASH_ATTN 3, then fails",
     "FLASHINFER"),
    ({"cache_dtype": "fp8", "capability": 75}, "FLEX_ATTENTION, then fails", "FLASHINFER", "FLASHINFER", "TRITON_ATTN"),
    ({"platform": "rocm"}, "TRITON_ATTN", "TRITON_ATTN", "TRITON_ATTN", "ROCM_ATTN"),
    ({"platform": "rocm", "head_size": 72}, *["TRITON_ATTN"] * 4),
    ({"platform": "rocm", "program": "XFORMERS"}, "TRITON_ATTN", "TRITON_ATTN", "refuses", "refuses"),
    ({"platform": "cpu"}, "TORCH_SDPA", "CPU_ATTN", "CPU_ATTN", "CPU_ATTN"),
    ({"platform": "cpu", "program": "FLASH_ATTN"}, "TORCH_SDPA", "CPU_ATTN", "CPU_ATTN", "CPU_ATTN"),
    ({"platform": "cpu", "head_size": 80}, "TORCH_SDPA", "CPU_ATTN, then fails", "CPU_ATTN, then fails", "CPU_ATTN"),
    ({"env": "TRITON"}, "refuses", "refuses", "refuses", "FLASH_ATTN 3"),
    ({"env": "XFORMERS"}, "XFORMERS", "XFORMERS", "refuses", "FLASH_ATTN 3"),
    ({"program": "FLASH_ATTN", "env": "FLEX_ATTENTION"}, "FLASH_ATTN 3", "FLASH_ATTN 3", "FLEX_ATTENTION",
     "FLASH_ATTN 3"),
    ({"program": "FLASH_ATTN", "head_size": 80}, "FLASH_ATTN 3, then fails", "refuses", "FLASH_ATTN 3", "FLASH_ATTN 3"),
    ({"program": "FLASH_ATTN", "per_kind": "TRITON_ATTN"}, *["FLASH_ATTN 3"] * 3, "TRITON_ATTN"),
    ({"program": "FLASHINFER", "installed": []}, *["refuses"] * 4),
    ({"block_size": 8}, "FLASH_ATTN 3, then fails", "FLASH_ATTN 3, then fails", "FLASH_ATTN 3, then fails", "refuses"),
]


def said(version: str, query: dict) -> str:
    answer = select_as(version, **query)
    words = f"{answer['backend'] or 'refuses'} {answer['flash_version'] or ''}".strip()
    return words + ", then fails" * bool(answer["backend"] and answer["error"])


@pytest.mark.parametrize("query, answers", [(q, a) for q, *a in KNOWN], ids=lambda x: str(x)[:60])
def test_known_answers(query, answers):
    assert [said(v, query) for v in VERSIONS] == answers


@given(st.sampled_from(VERSIONS), QUERIES)
def test_every_query_is_answered_with_reasons(version, query):
    source, answer = vllm_rules.rules()[version], select_as(version, **query)
    json.dumps(answer)
    assert answer["backend"] in source["backends"] if answer["backend"] else answer["error"]
    assert all(reasons and all(reasons) for reasons in answer["rejected"].values())
    assert answer["backend"] not in [*answer["rejected"], *answer["lower"]]
    assert (answer["flash_version"] is not None) <= (answer["backend"] == "FLASH_ATTN")
    asked = [step["by"] for step in source["asked"] if query[step["key"]]]
    assert answer["by"] in {"platform", *asked[:1]}
    more = query | {"installed": list(select.VLLM_PACKAGES)}
    if answer["backend"] and not answer["error"]:  # a further package never takes the answer away
        assert select_as(version, **more)["backend"]


def places(node):
    """Every `at` of the rules, and every check's place."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [value] if key in ("at", "names_at") else places(value)
    elif isinstance(node, list):
        if len(node) > 2 and isinstance(node[0], str) and isinstance(node[2], dict):
            yield node[1]
        for value in node:
            yield from places(value)


def test_every_rule_names_its_file_and_line_and_is_json():
    found = list(places(vllm_rules.rules()))
    assert len(found) > 150 and all(re.fullmatch(r"[\w/]+\.py:[1-9]\d*", at) for at in found)
    assert json.loads(json.dumps(vllm_rules.rules())) == vllm_rules.rules()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_speaks_of_its_own_backends(version):
    source = vllm_rules.rules()[version]
    assert source["backends"].keys() <= set(source["names"])
    for platform in source["platforms"].values():
        assert {step["backend"] for step in platform["order"]} <= source["backends"].keys()
        assert set(platform["named"]["take"]) <= source["backends"].keys()


def test_what_is_unknown_is_refused():
    for bad in ({"colour": "red"}, {"platform": "tpu"}, {"cache_dtype": "int3"}):
        with pytest.raises(UserError):
            select_as("0.33", **bad)
    with pytest.raises(UserError, match="no rules of vLLM"):
        select_as("0.12")


def test_who_sums_two_gpus_tensors():
    assert [vllm_rules.sums_by("0.11.0", n) for n in (1536, 2**23 - 1, 2**23)] == ["vLLM's custom all-reduce"] * 2 + [
        "NCCL"]
    assert vllm_rules.sums_by("0.11.0", 2**23, multicast=True) == "torch symmetric memory"
    assert [vllm_rules.sums_by("0.33", n) for n in (1536, 2**26)] == ["FlashInfer", "NCCL"]


def command(*words, monkeypatch=None, **env):
    parser = ArgumentParser()
    select.add_arguments(parser)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return select.run(parser.parse_args(words), None)


def test_the_command_answers_as_that_vllm_beside_ours(monkeypatch):
    monkeypatch.delenv("VLLM_ATTENTION_BACKEND", raising=False)
    answer = command("--as", "vllm-0.11.0", "--capability", "10.0", "--installed", "flashinfer,triton")
    assert (answer["backend"], answer["ours"]["backend"]) == ("FLASHINFER", "FLASH_ATTN_2")
    assert "FLASHINFER" in select.show(answer) and "ours: FLASH_ATTN_2" in select.show(answer)
    refused = command("--as", "vllm-0.11.2", "--platform", "cuda", "--head-size", "80", "--force", "FLASH_ATTN")
    assert refused["backend"] is None and refused["ours"]["backend"] is None
    assert "head_size not supported" in select.show(refused)
    assert command("--platform", "cuda", "--cache-dtype", "fp8")["backend"] == "FLASH_ATTN_3"
    env = command("--as", "vllm-0.33", "--platform", "cuda", monkeypatch=monkeypatch, VLLM_ATTENTION_BACKEND="XFORMERS")
    assert env["backend"] == "FLASH_ATTN" and env["notes"]
    for bad in (["--as", "vllm-1"], ["--as", "vllm-0.33", "--head-size", "0"], ["--block-size", "0"],
                ["--platform", "cuda", "--installed", "flashinfer"], ["--as", "vllm-0.33", "--cache-dtype", "int3"]):
        with pytest.raises(UserError):
            command(*bad)

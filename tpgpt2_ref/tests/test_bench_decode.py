"""`bench decode` and `bench prefill` as a user runs them, on a machine without a GPU too."""
from __future__ import annotations

import pytest
import torch

from tpgpt2_ref.bench.peer import without_cudnn_attention
from tpgpt2_ref.recorded.results import load

from .conftest import cli_json, run_cli

SMALL = ("--model", "random:gpt2-test", "--device", "cpu")


def test_decode(tmp_path):
    result = cli_json("bench", "decode", *SMALL, "--batch", 1, 3, "--prompt-len", 8, "--new-tokens", 5,
                      "--record", tmp_path)
    rows = {(r["engine"], r["batch"]): r for r in result["rows"]}
    assert rows.keys() == {("tpgpt2", 1), ("tpgpt2", 3), ("transformers", 1), ("transformers", 3)}
    for r in rows.values():
        assert 0 < r["us_per_step_p10"] <= r["us_per_step_median"] <= r["us_per_step_p90"]
        assert (r["tp"], r["sum"], r["prompt_len"], r["new_tokens"]) == (1, "none", 8, 5)
    assert result["why_eager"] == "CUDA graphs need a GPU"
    assert load(result["saved"]).rows == result["rows"]


def test_transformers_is_measured_without_cudnn_attention():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with pytest.raises(KeyError), without_cudnn_attention():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        raise KeyError
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_two_ranks():
    rows = cli_json("bench", "decode", *SMALL, "--tp", 2, "--batch", 2, "--prompt-len", 4, "--new-tokens", 3)["rows"]
    assert [(r["tp"], r["sum"], r["rung"]) for r in rows] == [(2, "gloo", "eager")]


def test_one_ranks_own_part():
    common = (*SMALL, "--imagine", 2, "--batch", 1, "--prompt-len", 8)
    rows = [*cli_json("bench", "decode", *common, "--new-tokens", 3)["rows"],
            *cli_json("bench", "prefill", *common, "--repeat", 3)["rows"]]
    assert [(r["engine"], r["tp"], r["sum"]) for r in rows] == [("tpgpt2", 2, "none")] * 2


def test_prefill(tmp_path):
    result = cli_json("bench", "prefill", *SMALL, "--batch", 2, "--prompt-len", 9, "--repeat", 3, "--record", tmp_path)
    assert [(r["engine"], r["rung"]) for r in result["rows"]] == [("tpgpt2", "eager"), ("transformers", "forward")]
    assert all(r["wall_us_median"] > 0 and r["gpu_us_median"] is None for r in result["rows"])
    assert load(result["saved"]).name == "prefill"


@pytest.mark.parametrize("argv, message", [
    (("decode", "--prompt-len", 8, "--new-tokens", 4, "--rung", "warp"), "unknown rung 'warp'"),
    (("decode", "--prompt-len", 127, "--new-tokens", 2), "more than the model's 128 positions"),
    (("decode", "--imagine", 2, "--tp", 2), "one real one: leave --tp out"),
    (("prefill", "--prompt-len", 129), "--prompt-len between 1 and 128"),
    (("prefill", "--repeat", 1), "--repeat must be at least 2"),
])
def test_mistakes(argv, message):
    done = run_cli("bench", argv[0], *SMALL, *argv[1:])
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""

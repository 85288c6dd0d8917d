"""The stopwatch of Diagram 5: its rows, its rates, and that it measures what it names."""
from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from tpgpt2_ref.bench.attention import HEADS, device, missing, rate, sweep
from tpgpt2_ref.bench.attention_case import make_case
from tpgpt2_ref.commands.bench import attention as command
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.recorded import results

from .conftest import cli_json, run_cli

SMALL = [("prefill", 2, 24, 64, "float32"), ("decode", 2, 24, 64, "float32")]


def test_rows_fit_the_schema(tmp_path):
    kept = list(sweep(["NAIVE", "SDPA"], samples=5, shapes=SMALL))
    assert [(r["phase"], r["backend"]) for r, _ in kept] == [
        ("prefill", "NAIVE"), ("prefill", "SDPA"), ("decode", "NAIVE"), ("decode", "SDPA")]
    for row, us in kept:
        assert 0 < row["us_p10"] <= row["us_median"] <= row["us_p90"] and len(us) == 5
        assert row["error_vs_fp64"] < 1e-5
    run = results.Run("attention", results.machine_card(), [r for r, _ in kept])
    assert results.load(results.save(run, tmp_path, [us for _, us in kept])).rows == run.rows


def test_rates_count_what_a_causal_attention_does():
    prefill = make_case([3, 5], [0, 0], HEADS, 64, torch.float32)
    pairs = (1 + 2 + 3) + (1 + 2 + 3 + 4 + 5)  # of a query and a key that it sees
    assert rate(prefill, 1.0)["tflop_per_s"] == pytest.approx(pairs * HEADS * 64 * 2 * 2 / 1e6)
    decode = make_case([1, 1], [9, 19], HEADS, 64, torch.float16)
    assert rate(decode, 1.0)["gb_per_s"] == pytest.approx((10 + 20) * 2 * HEADS * 64 * 2 / 1e3)


def test_a_backend_without_its_package_is_missing_with_the_reason():
    reasons = missing()
    assert "NAIVE" not in reasons and "SDPA" not in reasons
    if device() == "cpu":
        assert reasons["FLASH_ATTN_3"] == "runs on cuda, this is cpu"


def test_case_has_scattered_pages_and_only_its_own_tokens():
    case = make_case([1, 5, 1], [40, 30, 0], 2, 32, torch.float32)
    table = case.meta.block_table
    used = table[table > 0].tolist()
    assert len(set(used)) == len(used) == 3 + 3 + 1 and used != sorted(used)
    assert torch.equal(case.kv_cache[0].flatten(0, 1)[case.meta.slot_mapping], case.k)
    other = make_case([1, 5, 1], [40, 30, 0], 2, 32, torch.float32)
    other.kv_cache[:, 0] = 1e3  # a page of nobody's
    assert torch.equal(other.reference(), case.reference())


def test_the_command(tmp_path):
    answer = cli_json("bench", "attention", "--backends", "SDPA,XFORMERS", "--phase", "decode", "--samples", 3,
                      "--record", tmp_path)
    measured = {r["backend"] for r in answer["rows"]}
    assert {r["phase"] for r in answer["rows"]} == {"decode"} and "XFORMERS" in measured | answer["missing"].keys()
    assert results.load(answer["recorded"]).rows == answer["rows"]
    assert "SDPA" in command.show(answer)
    assert run_cli("bench", "attention", "--backends", "FASTEST").returncode == 2


@pytest.mark.skipif(device() == "cuda", reason="here XFORMERS may run")
def test_nothing_to_measure_is_the_users_mistake():
    with pytest.raises(UserError, match="nothing to measure"):
        command.run(Namespace(names=["XFORMERS"], phase=None, dtype=None, samples=3, json=False), None)


@pytest.mark.gpu
@pytest.mark.alone
def test_the_triton_kernel_decodes_faster_than_flex_and_close_to_flash_attention_3():
    names = ("FLASH_ATTN_3", "FLEX_ATTENTION", "TRITON_ATTN")
    us = {r["backend"]: r["us_median"] for r, _ in sweep(names, shapes=[("decode", 8, 1024, 64, "float16")])}
    assert us["TRITON_ATTN"] < us["FLEX_ATTENTION"]
    assert "FLASH_ATTN_3" not in us or us["TRITON_ATTN"] < 1.5 * us["FLASH_ATTN_3"]

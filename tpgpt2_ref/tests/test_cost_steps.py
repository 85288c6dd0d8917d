"""What a forward computes and sends by the cost model, against the recorder and the recorded fits."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpgpt2_ref.attention.kv_cache import allocate_kv_cache
from tpgpt2_ref.config import FAMILY
from tpgpt2_ref.cost import collectives as cost
from tpgpt2_ref.cost import forward as cost_forward
from tpgpt2_ref.cost.simulate import fake_forward
from tpgpt2_ref.engine.decode_step import decode_step
from tpgpt2_ref.kernels import Kernels
from tpgpt2_ref.kernels.state import DecodeState
from tpgpt2_ref.kernels.tiles import ALL_WIDE, tile_for
from tpgpt2_ref.recorded import results
from tpgpt2_ref.trace import Trace
from tpgpt2_ref.weights import load_model

from .conftest import on_ranks
from .imagined import curve, steps, truth


@pytest.mark.parametrize("file", sorted(results.BOOK_RESULTS.glob("*/cost_model.json")), ids=lambda f: f.parent.name)
def test_the_recorded_models_are_the_fits_of_their_runs(file, monkeypatch):
    monkeypatch.setattr(cost_forward, "DRAWS", 1)  # the others take seconds, and say only how much hangs on the draw
    model = results.load(file).rows
    runs = [results.load(f) for f in (file.with_name("decode.json"), file.with_name("prefill.json")) if f.is_file()]
    fits = [fit for run in runs for fit in cost_forward.fit_forward(run.name, run.rows, model)]
    recorded = [row for row in model if row["op"] in ("decode", "prefill")]
    for a, b in zip(fits, recorded, strict=True):
        hangs = b.pop("draws_within_15_percent")
        assert 0 <= a.pop("draws_within_15_percent") <= 1 and 0 <= hangs <= 1
        assert a == {k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for k, v in b.items()}


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "gpt2-test"])
@pytest.mark.parametrize("tp", [2, 3, 1024])
@pytest.mark.parametrize("plan", ["shipped", "as-drawn"])
def test_counts_and_bytes_are_the_recorders(name, tp, plan):
    """What `cost forward` prices is what a forward on a fake world of that many ranks records."""
    tokens, config = 3, FAMILY[name]
    if name == "gpt2-xl":
        config = replace(config, n_layer=2)  # its 25 heads are what differs; layers are counted in gpt2
    rows = fake_forward(config, tp, plan, tokens, torch.bfloat16)
    recorded = sorted((r.op, r.bytes) for r in rows)
    priced = sorted((op, nbytes) for op, nbytes, times in cost_forward.collectives(config, tp, 1, tokens, plan)
                    for _ in range(times))
    assert recorded == priced


def sent_by_a_decode_step(world, batch):
    """[(op, bytes)] of `decode_step`, its kernels in plain torch."""
    model = load_model("random:gpt2-test", world)
    config, impl = model.config, model.impl
    state = DecodeState.empty(batch, impl.num_heads, 32, torch.device("cpu"))
    kv = allocate_kv_cache(config.n_layer, 1, 16, impl.num_heads, config.head_size, torch.float32, "cpu")
    world.trace = Trace()
    with torch.inference_mode():
        decode_step(model, kv, state, Kernels.choose(()))
    return sorted((r.op, r.bytes) for r in world.trace.rows)


def test_what_the_higher_rungs_send():
    """A decode step gathers best tokens; a fused prefill's last layer sums the prompts' last tokens alone."""
    config = FAMILY["gpt2-test"]
    calls = cost_forward.collectives(config, 2, 3, 1, itemsize=4, rung="+pdl")
    priced = sorted((op, nbytes) for op, nbytes, times in calls for _ in range(times))
    assert on_ranks(2, sent_by_a_decode_step, 3) == [priced] * 2
    whole, short = (cost_forward.collectives(config, 2, 3, 20, rung=rung) for rung in (None, "fused"))
    sums = [sum(nbytes * times for op, nbytes, times in calls if op == "all_reduce") for calls in (whole, short)]
    assert sums[0] - sums[1] == 2 * 3 * 19 * config.n_embd * 2 and whole[-1] == short[-1]


def test_what_a_way_to_sum_cannot_do_goes_over_its_link_by_nccl():
    """push sums and gathers nothing: the logits' all-gather is NCCL's, on the same link."""
    model = cost.fit_collectives([r for path in ("nccl", "nccl/sockets") for r in curve(truth, "all_gather", path)]
                                 + curve(lambda n: 3 + n / 50e3, path="push"))
    assert cost_forward.path_of(model, "all_reduce", "push") == "push"
    assert cost_forward.path_of(model, "all_gather", "push") == "nccl"
    assert cost_forward.path_of(model, "all_gather", "push/sockets") == "nccl/sockets"
    step = cost_forward.forward(model, FAMILY["gpt2"], 2, 1, 1, path="push")
    assert step["paths"] == {"all_reduce": "push", "all_gather": "nccl"}
    assert step["communication_us"] == pytest.approx(25 * (3 + 1536 / 50e3) + truth(50304), rel=0.06)


def test_push_gathers_best_tokens_and_never_logits():
    model = cost.fit_collectives(curve(truth, "all_gather", "nccl")
                                 + [r for op in ("all_reduce", "all_gather") for r in curve(lambda n: 3.0, op, "push")])
    for rung, path in (("+pdl", "push"), ("+head", "nccl"), ("graph", "nccl"), (None, "nccl")):
        calls = cost_forward.collectives(FAMILY["gpt2"], 2, 1, 1, rung=rung)
        _, found = cost_forward.communication_us(model, calls, 2, "push", False, rung)
        assert {f["op"]: f["path"] for f in found} == {"all_reduce": "push", "all_gather": path}


def test_kernels_change_where_the_fits_do():
    """The batches at which `cost_forward` begins another fit are those at which the products' kernels change."""
    def kind(batch):
        tile = tile_for("gelu", batch, 3072, 768)
        return type(tile).__name__.lower()

    changes = [b for b in range(2, 257) if kind(b) != kind(b - 1)]
    assert changes == list(cost_forward.FROM_BATCH[1:]) and kind(ALL_WIDE) == "wide" and ALL_WIDE in changes


def test_weights_of_gpt2_are_247_megabytes():
    """In bf16 on one rank a decode step reads 12 blocks and the tied head."""
    _, layers, weights, many, cache, flops = cost_forward.work(FAMILY["gpt2"], 1, 1, 1, 511)
    assert many == 0 and cost_forward.work(FAMILY["gpt2"], 1, 64, 1, 511)[3:5] == (64 * cache, 0)
    assert layers == 12 and weights == pytest.approx((12 * 12 * 768**2 + 50304 * 768) * 2)
    assert cache == 2 * 12 * 512 * 768 * 2 and flops == pytest.approx(weights, rel=0.1)  # 2 flops a 2-byte weight


def test_a_kernel_that_was_never_run_is_not_free():
    """Rows of one attention kernel alone: a byte that the other would read costs as much."""
    model = cost.fit_collectives([r for op in ("all_reduce", "all_gather") for r in curve(truth, op, graph=True)])
    for batch in (8, 64):
        (fit,) = cost_forward.fit_forward("decode", [r for r in steps(model) if r["batch"] == batch], model)
        assert fit["us_per_kv_byte"] == fit["us_per_kv_byte_few"] > 0

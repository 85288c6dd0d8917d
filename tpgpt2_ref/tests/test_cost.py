"""The cost model on curves whose truth is known, its arithmetic against the recorder, and its commands."""
from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch

from tpgpt2_ref.attention.kv_cache import allocate_kv_cache
from tpgpt2_ref.cli import main
from tpgpt2_ref.config import FAMILY
from tpgpt2_ref.cost import collectives as cost
from tpgpt2_ref.cost import forward as cost_forward
from tpgpt2_ref.cost.simulate import fake_forward
from tpgpt2_ref.engine.decode_step import decode_step
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.kernels import Kernels
from tpgpt2_ref.kernels.state import DecodeState
from tpgpt2_ref.kernels.tiles import ALL_WIDE, tile_for
from tpgpt2_ref.recorded import results
from tpgpt2_ref.recorded.samples import bandwidth
from tpgpt2_ref.trace import Trace
from tpgpt2_ref.weights import load_model

from .conftest import on_ranks

SIZES = [2**i for i in range(8, 31)]


def truth(nbytes):
    """A library with two protocols: 10 us and 2 GB/s, from 64 KiB 35 us and 300 GB/s."""
    return 10 + nbytes / 2e3 if nbytes < 65536 else 35 + nbytes / 300e3


def curve(us, op="all_reduce", path="nccl", world=2, graph=False, noise=0.0, sizes=SIZES):
    dice = random.Random(1)
    rows = []
    for n in sizes:
        t = us(n) * (1 + dice.uniform(-noise, noise))
        rows.append({"op": op, "path": path, "world": world, "bytes": n, "dtype": "bfloat16", "graph": graph,
                     "us_median": t, "us_p10": t, "us_p90": t, **bandwidth(op, n, t, world)})
    return rows


def test_least_squares_finds_what_made_the_numbers_and_nothing_negative():
    features = [(1.0, n, n * n) for n in range(1, 9)]
    found, error = cost.least_squares(features, [3 + 2 * a for _, a, _ in features])
    assert found == pytest.approx((3, 2, 0), abs=1e-9) and error < 1e-18
    falling, _ = cost.least_squares([(1.0, n) for n in range(1, 9)], [10.0 - n for n in range(1, 9)])
    assert min(falling) >= 0


def test_of_two_terms_that_say_the_same_the_first_is_taken():
    """At one batch size flops are weights times a constant: rounding must not decide which of them has the price."""
    dice = random.Random(4)
    for _ in range(50):
        features = [(1.0, n, 3 * n) for n in dice.sample(range(1, 99), 8)]
        found, _ = cost.least_squares(features, [5 + n * dice.uniform(1, 2) for _, n, _ in features])
        assert found[1] > 0 and found[2] == 0


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


def test_pieces_find_the_protocols():
    pieces = cost.fit_pieces([(n, truth(n)) for n in SIZES])
    assert len(pieces) == 2 and pieces[1]["from_bytes"] in range(32769, 65537)
    assert [p["alpha_us"] for p in pieces] == pytest.approx([10, 35], rel=0.01)
    assert [1e-3 / p["beta_us_per_byte"] for p in pieces] == pytest.approx([2, 300], rel=0.01)
    ends = [cost.evaluate(pieces, n) for n in (32768, 49152, 65536)]  # nobody saw where it jumps: half-way between
    assert ends[1] == pytest.approx((ends[0] + ends[2]) / 2) and ends == pytest.approx(
        [truth(32768), (truth(32768) + truth(65536)) / 2, truth(65536)], rel=0.02)
    one = cost.fit_pieces([(n, 12 + n / 100e3) for n in SIZES])
    assert len(one) == 1 and one[0]["from_bytes"] == 256


def test_a_line_is_the_least_squares_of_its_points():
    dice = random.Random(3)
    for _ in range(100):
        points = [(n, dice.uniform(1, 100)) for n in sorted(dice.sample(SIZES, 6))]
        given = [dice.uniform(0, 2) for _ in points]
        (alpha, beta), error = cost.least_squares([(1.0, n) for n, _ in points], [us for _, us in points], given)
        rows = [(1 / us, n / us, 1 - g / us) for (n, us), g in zip(points, given)]
        got = cost._line(*(sum(r[i] * r[k] for r in rows) for i, k in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))))
        assert got == pytest.approx((error, alpha, beta), rel=1e-6, abs=1e-12)


def test_the_error_is_of_sizes_that_were_not_fitted():
    """Spoil one size in two: the fit on the others stays perfect, and the error says how far off the spoiled are."""
    rows = curve(truth)
    for row in rows[1::2]:
        row["us_median"] *= 1.25
    (first, *_) = cost.fit_collectives(rows)
    assert first["heldout_median_error"] == pytest.approx(0.2, abs=0.02) and first["heldout_points"] == 11
    assert first["heldout_median_error_low"] <= 0.2 <= first["heldout_median_error_high"] + 1e-3


def test_noise_of_4_percent_stays_within_the_bar():
    (first, *_) = cost.fit_collectives(curve(truth, noise=0.04))
    assert first["heldout_median_error"] <= 0.08 and first["heldout_worst_error"] <= 0.25


def test_starting_a_sample_is_no_part_of_a_call():
    """One call of 16 MB carries the whole start, a hundred small ones share it; the pieces are the calls' own."""
    def calls(n):
        return min(100, max(1, 2**24 // n))  # as in the first sweeps, whose rows don't say

    rows = curve(lambda n: truth(n) + 40 / calls(n))
    model = cost.fit_collectives(rows + curve(lambda n: 3 + n / 50e3 + 40 / calls(n), path="push"))
    assert model[0]["start_us"] == pytest.approx(40, rel=0.2) and model[0]["heldout_worst_error"] <= 0.25
    for path, us in (("nccl", truth), ("push", lambda n: 3 + n / 50e3)):
        for n in (1024, 2**24, 2**29):
            assert cost.predict(model, "all_reduce", n, 2, path)["us"] == pytest.approx(us(n), rel=0.05)
    says = [{**r, "calls": 1, "us_median": truth(r["bytes"]) + 40} for r in rows]  # a row's own count comes first
    assert cost.fit_collectives(says)[0]["start_us"] <= 50


def test_a_sizes_own_spread_stands_beside_its_error():
    rows = curve(truth)
    rows[5].update(us_median=2 * rows[5]["us_median"], us_p10=rows[5]["us_p10"], us_p90=3 * rows[5]["us_p90"])
    (first, *_) = cost.fit_collectives(rows)
    assert first["heldout_worst_error"] == pytest.approx(0.5, abs=0.02)
    assert first["heldout_worst_spread"] == 0.5 and first["heldout_median_spread"] == 0


def test_too_few_sizes_are_refused():
    with pytest.raises(UserError, match="at least 6 sizes"):
        cost.fit_collectives(curve(truth)[:5])


def test_predict_takes_the_fastest_path_or_the_one_named():
    model = cost.fit_collectives(curve(truth) + curve(lambda n: 4 + n / 50e3, path="one_shot")
                                 + curve(lambda n: 1.0, path="bare nccl") + curve(lambda n: 1.0, path="gloo/two-hosts")
                                 + curve(lambda n: 5 * truth(n), path="nccl/sockets"))
    assert cost.predict(model, "all_reduce", 1024, 2)["path"] == "one_shot"
    big = cost.predict(model, "all_reduce", 2**28, 2)
    assert big["path"] == "nccl" and big["us"] == pytest.approx(truth(2**28), rel=0.02) and not big["on_paper"]
    assert cost.predict(model, "all_reduce", 2**28, 2, "nccl/sockets")["us"] == pytest.approx(5 * big["us"], rel=0.02)
    assert cost.predict(model, "all_reduce", 2**33, 2)["beyond_measured_sizes"]
    with pytest.raises(UserError, match="no all_reduce over rccl; it has .*all_reduce over nccl,"):
        cost.predict(model, "all_reduce", 1024, 2, "rccl")


def test_a_world_that_was_not_measured_is_a_ring_on_paper():
    """Built by hand: a ring of n ranks takes 2(n-1) steps of 1 us + bytes/n at 100 GB/s."""
    def ring(n):
        return lambda b: 2 * (n - 1) * (1 + b / n / 100e3)

    model = cost.fit_collectives(curve(ring(2)))
    for n in (4, 1024):
        got = cost.predict(model, "all_reduce", 2**20, n)
        assert got["on_paper"] and got["measured_world"] == 2 and got["us"] == pytest.approx(ring(n)(2**20), rel=0.01)


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


def steps(model, noise=0.03):
    """Decode rows of an imagined machine that follows the model's form: 4 TB/s, 3 us a layer."""
    dice, rows = random.Random(2), []
    for name in ("gpt2", "gpt2-medium", "gpt2-xl"):
        for tp in (1, 2):
            for batch in (1, 8, 64):
                for prompt in (128, 512):
                    config = FAMILY[name]
                    _, layers, weights, *cache, flops = cost_forward.work(config, tp, batch, 1, prompt + 64)
                    cache = sum(cache)
                    calls = cost_forward.collectives(config, tp, batch, 1)
                    comm, _ = cost_forward.communication_us(model, calls, tp, "nccl", True)
                    us = 20 + 3 * layers + (weights + cache) / 4e6 + flops / 4e8 + comm
                    us *= 1 + dice.uniform(-noise, noise)
                    rows.append({"engine": "tpgpt2", "model": f"random:{name}", "dtype": "bfloat16", "tp": tp,
                                 "sum": "nccl" if tp > 1 else "none", "rung": "graph", "batch": batch,
                                 "prompt_len": prompt, "us_per_step_median": us, "us_per_step_p10": us,
                                 "us_per_step_p90": us})
    return rows


def test_a_kernel_that_was_never_run_is_not_free():
    """Rows of one attention kernel alone: a byte that the other would read costs as much."""
    model = cost.fit_collectives([r for op in ("all_reduce", "all_gather") for r in curve(truth, op, graph=True)])
    for batch in (8, 64):
        (fit,) = cost_forward.fit_forward("decode", [r for r in steps(model) if r["batch"] == batch], model)
        assert fit["us_per_kv_byte"] == fit["us_per_kv_byte_few"] > 0


@pytest.fixture
def folder(tmp_path):
    """An imagined machine's results, as `bench` records them."""
    rows = [r for op in ("all_reduce", "all_gather") for graph in (False, True) for r in curve(truth, op, graph=graph)]
    model = cost.fit_collectives(rows)
    card = {**results.machine_card(), "slug": "2x-imagined", "kind": "cuda", "device": "Imagined", "count": 2}
    results.save(results.Run("collectives", card, rows), tmp_path)
    return results.save(results.Run("decode", card, steps(model)), tmp_path).parent


STEP = ["--gpt2", "gpt2", "--tp", "2", "--batch", "1", "--tokens", "1"]


def ask(capsys, *argv):
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_fit_predict_and_forward_from_the_command_line(folder, tmp_path, capfd):
    model = tmp_path / "model.json"
    fitted = ask(capfd, "cost", "fit", folder, "--out", model)
    assert results.load(model).rows == fitted["rows"] and results.load(model).machine["slug"] == "2x-imagined"
    decode = [r for r in fitted["rows"] if r["op"] == "decode"]
    assert [r["from_batch"] for r in decode] == list(cost_forward.FROM_BATCH)
    assert all(r["heldout_within_15_percent"] >= 0.8 and r["heldout_median_error"] < 0.1 for r in decode)
    one = ask(capfd, "cost", "predict", "--model", model, "--op", "all_reduce", "--bytes", 24576, "--world", 2)
    assert one["us"] == pytest.approx(truth(24576), rel=0.06) and not one["this_machine"]
    step = ask(capfd, "cost", "forward", "--model", model, "--gpt2", "gpt2-xl", "--tp", 2, "--batch", 8, "--tokens", 1,
               "--context", 192)
    assert step["collectives"] == {"all_reduce": 97, "all_gather": 1} and step["rung"] == "graph"
    assert step["us"] == pytest.approx(step["compute_us"] + step["communication_us"])
    (row,) = [r for r in results.load(folder / "decode.json").rows
              if (r["model"], r["tp"], r["batch"], r["prompt_len"]) == ("random:gpt2-xl", 2, 8, 128)]
    assert step["us"] == pytest.approx(row["us_per_step_median"], rel=0.15)
    assert step["crossover_batch"] is None or step["crossover_batch"] >= 1
    many = ask(capfd, "cost", "forward", "--model", model, "--gpt2", "gpt2", "--tp", 1024, "--batch", 1, "--tokens", 8)
    assert many["on_paper"] and many["us"] is None and many["collectives"] == {"all_reduce": 25, "all_gather": 1}


def test_one_rank_needs_no_collectives(folder, tmp_path, capfd):
    """A machine with one GPU has decode runs alone: its model prices one rank, and refuses two."""
    model = tmp_path / "model.json"
    ask(capfd, "cost", "fit", folder / "decode.json", "--out", model)
    one = ["cost", "forward", "--model", str(model), "--gpt2", "gpt2", "--batch", "1", "--tokens", "1"]
    assert ask(capfd, *one, "--tp", 1)["us"] > 0
    assert main([*one, "--tp", "2"]) == 2 and "the model has no all_reduce" in capfd.readouterr().err


def test_a_person_reads_the_error_and_the_machine(folder, tmp_path, capfd):
    model = tmp_path / "model.json"
    assert main(["cost", "fit", str(folder), "--out", str(model)]) == 0
    assert main(["cost", "forward", "--model", str(model), *STEP]) == 0
    out = capfd.readouterr().out
    assert "median error" in out and "Imagined" in out and "25 all_reduce + 1 all_gather" in out


@pytest.mark.parametrize("argv, word", [
    (["fit", "{tmp}/none.json", "--out", "{tmp}/m.json"], "cannot read"),
    (["fit", "{tmp}", "--out", "{tmp}/m.json"], "holds none of"),
    (["forward", "--model", "{folder}/decode.json", *STEP], "not a cost model"),
    (["predict", "--model", "m.json", "--op", "all_reduce", "--bytes", "0", "--world", "2"], "--bytes"),
    (["forward", "--model", "m.json", *STEP, "--tp", "0"], "--tp"),
    (["forward", "--model", "m.json", *STEP, "--tokens", "2000"], "1024 positions"),
])
def test_mistakes_are_one_line_and_status_2(argv, word, folder, tmp_path, capfd):
    assert main(["cost", *(a.format(tmp=tmp_path, folder=folder) for a in argv)]) == 2
    out, err = capfd.readouterr()
    assert word in err and err.count("\n") == 1 and not out and not (tmp_path / "m.json").exists()


def test_runs_of_two_machines_are_not_mixed(folder, tmp_path, capfd):
    mine = results.save(results.Run("collectives", results.machine_card(), curve(truth)), tmp_path)
    assert main(["cost", "fit", str(mine), str(folder), "--out", str(tmp_path / "m.json")]) == 2
    assert "different machines" in capfd.readouterr().err

"""Which rung prices a forward, what one GPU alone can tell, how halves are drawn, and shares without a model."""
from __future__ import annotations

import pytest

from tpgpt2_ref.cli import main
from tpgpt2_ref.config import FAMILY
from tpgpt2_ref.cost import collectives as cost
from tpgpt2_ref.cost import forward as cost_forward
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.recorded import results

from .imagined import ask, curve, steps, truth


def rung(name, us_per_layer, world=2, models=4):
    """A fit of that rung, of its work's time a layer alone."""
    return {"op": "decode", "path": name, "world": world, "graph": True, "from_bytes": 0, "from_batch": 1,
            "models": models, **dict.fromkeys(cost_forward.TERMS, 0.0), "us_per_layer": us_per_layer}


@pytest.fixture(scope="module")
def links():
    return cost.fit_collectives([r for op in ("all_reduce", "all_gather") for r in curve(truth, op, graph=True)])


def test_a_rung_of_one_rank_alone_prices_one_rank_alone(links):
    """The crossover holds each number of ranks against the other's own fastest rung."""
    model = [*links, rung("+pdl", 20.0), rung("+poll", 5.0, world=1)]
    one, two = (cost_forward.forward(model, FAMILY["gpt2"], tp, 1, 1) for tp in (1, 2))
    assert (one["rung"], one["us"]) == ("+poll", 60) and (two["rung"], two["compute_us"]) == ("+pdl", 240)
    assert cost_forward.crossover(model, FAMILY["gpt2"], 2) is None
    with pytest.raises(UserError, match="decode of rung '.poll' with one rank alone"):
        cost_forward.forward(model, FAMILY["gpt2"], 2, 1, 1, rung="+poll")
    with pytest.raises(UserError, match=r"no decode of rung '.norm'; it has .pdl, .poll"):
        cost_forward.forward(model, FAMILY["gpt2"], 2, 1, 1, rung="+norm")


def test_several_ranks_of_which_only_the_links_are_known(links):
    model = [*links, rung("+poll", 5.0, world=1)]
    step = cost_forward.forward(model, FAMILY["gpt2"], 2, 1, 1)
    assert step["us"] is None and step["rung"] is None and step["communication_us"] > 0
    assert cost_forward.crossover(model, FAMILY["gpt2"], 2) is None


def test_a_rung_that_saw_one_model_says_nothing_of_others(links):
    model = [*links, rung("+head", 1.0, models=1), rung("+pdl", 20.0)]
    assert cost_forward.forward(model, FAMILY["gpt2-xl"], 1, 1, 1)["rung"] == "+pdl"
    assert cost_forward.forward(model, FAMILY["gpt2-xl"], 1, 1, 1, rung="+head")["rung"] == "+head"


def test_a_machine_with_one_gpu_has_its_forwards_fitted(links, tmp_path, capfd):
    """Its rows of several ranks are one rank's own part. What ranks would say to each other it can't know."""
    rows = [{**r, "sum": "none", "rung": "+poll"} for r in steps(links)]
    card = {**results.machine_card(), "slug": "1x-imagined", "kind": "cuda", "device": "Imagined", "count": 1}
    folder = results.save(results.Run("decode", card, rows), tmp_path).parent
    fitted = ask(capfd, "cost", "fit", folder, "--out", tmp_path / "m.json")["rows"]
    assert {(r["op"], r["world"], r["models"]) for r in fitted} == {("decode", 1, 3)}
    step = ["cost", "forward", "--model", str(tmp_path / "m.json"), "--gpt2", "gpt2", "--batch", "1", "--tokens", "1"]
    assert ask(capfd, *step, "--tp", 1)["rung"] == "+poll"
    assert main([*step, "--tp", "2"]) == 2 and "fit it with a collectives.json" in capfd.readouterr().err


def test_what_communication_costs_is_what_one_rank_alone_does_not_need():
    row = {"engine": "tpgpt2", "model": "gpt2", "dtype": "bfloat16", "rung": "+pdl", "batch": 1, "prompt_len": 128}
    rows = [{**row, "tp": 1, "sum": "none", "us_per_step_median": 150.0},
            {**row, "tp": 2, "sum": "none", "us_per_step_median": 120.0},
            {**row, "tp": 2, "sum": "push", "us_per_step_median": 160.0},
            {**row, "tp": 2, "sum": "nccl", "us_per_step_median": 400.0},
            {**row, "tp": 2, "sum": "nccl", "us_per_step_median": 400.0, "batch": 8}]  # alone at batch 1 only
    found = cost_forward.measured_shares(rows)
    shares = [(r["sum"], r["alone_us"], r["communication_share"]) for r in found]
    assert shares == [("push", 120, 0.25), ("nccl", 120, 0.7)]
    assert cost_forward.measured_shares([]) == []


def test_both_halves_hold_every_arrangement_and_further_draws_are_judged(links):
    (fit, *_) = cost_forward.fit_forward("decode", steps(links, noise=0.01), links)
    assert fit["heldout_within_15_percent"] == 1 and fit["draws_within_15_percent"] > 0.9
    part = [({"tp": tp, "sum": "none", "us_per_step_median": 10.0 * tp},
             (float(tp == 1), float(tp == 2), *[0.0] * (len(cost_forward.TERMS) - 2)), 0.0)
            for tp in (1, 2) for _ in range(4)]
    for draw in range(20):  # a side without one of them could not be told
        coefficients, errors = cost_forward._fit_half("decode", part, draw)
        assert coefficients[:2] == pytest.approx([10, 20]) and max(errors) < 1e-9

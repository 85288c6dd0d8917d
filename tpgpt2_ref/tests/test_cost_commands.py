"""`cost fit`, `predict` and `forward` from the command line."""
from __future__ import annotations

import pytest

from tpgpt2_ref.cli import main
from tpgpt2_ref.cost import collectives as cost
from tpgpt2_ref.cost import forward as cost_forward
from tpgpt2_ref.recorded import results

from .imagined import ask, curve, steps, truth


@pytest.fixture
def folder(tmp_path):
    """An imagined machine's results, as `bench` records them."""
    rows = [r for op in ("all_reduce", "all_gather") for graph in (False, True) for r in curve(truth, op, graph=graph)]
    model = cost.fit_collectives(rows)
    card = {**results.machine_card(), "slug": "2x-imagined", "kind": "cuda", "device": "Imagined", "count": 2}
    results.save(results.Run("collectives", card, rows), tmp_path)
    return results.save(results.Run("decode", card, steps(model)), tmp_path).parent


STEP = ["--gpt2", "gpt2", "--tp", "2", "--batch", "1", "--tokens", "1"]


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

"""Recorded runs: written whole, read back, and refused by name when they are not what they should be."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tpgpt2_ref.errors import UserError
from tpgpt2_ref.recorded import results

ROW = {"op": "all_reduce", "path": "gloo", "world": 2, "bytes": 1024, "dtype": "float32", "graph": False,
       "us_median": 50.0, "us_p10": 45.0, "us_p90": 80.0, "algbw_gb_per_s": 0.02, "busbw_gb_per_s": 0.02}


@pytest.fixture
def path(tmp_path):
    run = results.Run("collectives", results.machine_card(), [ROW, {**ROW, "bytes": 2048}])
    return results.save(run, tmp_path, samples=[[50.0, 45.0], [50.00049]])


def rewrite(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def test_a_run_reads_back_as_it_was_written(path):
    run = results.load(path)
    assert run.rows == [ROW, {**ROW, "bytes": 2048}] and run.is_this_machine
    assert run.machine == results.machine_card() and run.recorded_at and run.commit
    raw = json.loads((path.parent / "raw" / path.name).read_text())
    assert raw["rows"] == [{"us": [50.0, 45.0]}, {"us": [50.0]}]
    assert run.machine["device"] in run.label and run.recorded_at[:10] in run.label


def test_samples_of_an_earlier_run_do_not_stay(path, tmp_path):
    results.save(results.Run("collectives", results.machine_card(), [ROW]), tmp_path)
    assert len(results.load(path).rows) == 1 and not (path.parent / "raw" / path.name).exists()


def test_a_shared_gpu_is_in_the_label():
    card = {**results.machine_card(), "environment": {"TPGPT2_SHARE_GPU": "1"}}
    assert "no time here means anything" in results.Run("collectives", card, [ROW]).label


def test_recorded_finds_runs_by_machine_and_not_their_raw_samples(path, tmp_path):
    rewrite(path, lambda d: d["machine"].update(slug="2x-other", device="Other"))
    (tmp_path / "2x-other").mkdir()
    path.rename(tmp_path / "2x-other" / "collectives.json")
    runs = results.recorded("collectives", tmp_path)
    assert [r.machine["slug"] for r in runs] == ["2x-other"] and not runs[0].is_this_machine
    assert results.recorded("decode", tmp_path) == []


@pytest.mark.parametrize("change, word", [
    (lambda d: d.update(schema=2), "schema is 2"),
    (lambda d: d.pop("schema"), "schema is missing"),
    (lambda d: d.pop("machine"), "machine is missing"),
    (lambda d: d["machine"].pop("device"), "machine.device is missing"),
    (lambda d: d.update(recorded_at="yesterday"), "recorded_at"),
    (lambda d: d.update(rows=[]), "rows is empty"),
    (lambda d: d.update(raws=[]), "raws is no field"),
    (lambda d: d["rows"][1].pop("us_p90"), r"rows\[1\].us_p90 is missing"),
    (lambda d: d["rows"][1].update(bytes=True), r"rows\[1\].bytes is True"),
    (lambda d: d["rows"][0].update(us_median="fast"), r"rows\[0\].us_median is 'fast', which is no number"),
    (lambda d: d["rows"][0].update(us_median=float("nan")), r"rows\[0\].us_median is nan"),
    (lambda d: d["rows"][0].update(more=[1]), r"rows\[0\].more is \[1\]"),
])
def test_a_bad_file_is_refused_by_the_field(path, change, word):
    with pytest.raises(UserError, match=word) as e:
        results.load(rewrite(path, change))
    assert str(path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("keep", [0, 100, -3])
def test_a_file_cut_short_is_refused(path, keep):
    path.write_text(path.read_text()[:keep])
    with pytest.raises(UserError, match="cut short"):
        results.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.json"):
        results.load(tmp_path / "nowhere.json")


def test_nothing_bad_is_written(tmp_path):
    with pytest.raises(UserError, match="us_median"):
        results.save(results.Run("collectives", results.machine_card(), [{**ROW, "us_median": None}]), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_machines_are_not_mixed(path):
    mine = results.load(path)
    other = results.Run("collectives", {**mine.machine, "slug": "2x-other"}, mine.rows, mine.recorded_at, "abc")
    with pytest.raises(UserError, match="2x-other"):
        results.one_machine([mine, other])
    assert len(results.one_machine([mine, mine]).rows) == 4


def test_the_books_own_results_are_valid():
    for path in results.BOOK_RESULTS.glob("*/*.json"):
        run = results.load(path)
        assert path.stem == run.name and path.parent.name == run.machine["slug"]


def test_results_links_and_cost_import_without_torch():
    code = "import sys, tpgpt2_ref.recorded.results, tpgpt2_ref.bench.dial, tpgpt2_ref.cost.collectives; " \
           "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

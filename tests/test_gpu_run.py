"""The script for GPU machines, on one without: its steps, limits, and what it does when one fails."""
from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

from tests.gpu_steps import FAMILY
from tpgpt2_ref.cli import parser
from tpgpt2_ref.recorded import results

SPEC = importlib.util.spec_from_file_location("gpu_run", Path(__file__).with_name("gpu_run.py"))
gpu_run = sys.modules["gpu_run"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gpu_run)


def test_steps_grow_with_the_gpus(tmp_path):
    names = {n: [s.name for s in gpu_run.steps(tmp_path, n)] for n in (1, 2, 4, 8)}
    assert all(len(set(found)) == len(found) for found in names.values())
    assert set(names[1]) < set(names[2]) < set(names[4]) < set(names[8])
    assert {"tests-1", "attention", "collectives", "decode-gpt2-tp1", "chapter-decode"} <= set(names[1])
    assert "decode-gpt2-xl-tp4" in names[4] and "trace-tp2-as-drawn-decode-graph" in names[2]
    eight = {f"{bench}-{model}-tp8" for bench in ("decode", "prefill") for model in FAMILY}
    assert eight | {f"trace-tp8-{plan}-decode-graph" for plan in ("shipped", "as-drawn")} | {"tests-8"} < set(names[8])
    assert eight | {f"collectives-tp{n}" for n in (2, 4, 8)} | {"ladder-tp8", "decode-gpt2-xl-alone8", "tests-8"} < {
        s.name for s in gpu_run.steps(tmp_path, 8, quick=True)}
    for step in (*gpu_run.steps(tmp_path, 8), *(quick := gpu_run.steps(tmp_path, 2, quick=True))):
        assert step.limit > 0 and all(isinstance(a, str) for a in step.argv)
    assert {"ladder-tp2", "decode-nccl-tp2", "decode-gpt2-xl-tp1", "decode-gpt2-alone2", "collectives-host",
            "tests-2"} <= {s.name for s in quick}


def test_the_steps_run_every_gpu_test_once(tmp_path):
    steps = {s.name: s for s in gpu_run.steps(tmp_path, 8)}
    wanted = [["tpgpt2_ref", "-v", "-m", "gpu or gpus"],
              *(steps[f"tests-{n}"].argv[3:] for n in (1, "alone", 2, 4, 8))]
    code = """if True:
        import json, sys, pytest
        for argv in json.loads(sys.argv[1]):
            print("=====")
            pytest.main([*argv, "--collect-only", "-qq"])"""  # torch is imported once, not five times
    found = subprocess.run([sys.executable, "-c", code, json.dumps(wanted)], cwd=gpu_run.ROOT, capture_output=True,
                           text=True).stdout.split("=====")[1:]
    every, *others = [[line for line in out.splitlines() if "::" in line] for out in found]
    assert all(others) and sorted(sum(others, [])) == sorted(every)


def test_processes_share_the_tests_out(tmp_path):
    """Each test is run by one of them, with the fixtures that it has in common with the next that is run there."""
    for name in "ab":
        (tmp_path / f"test_{name}.py").write_text("""
import os, pytest, time
@pytest.fixture(scope="module")
def begun():
    return time.monotonic()
@pytest.mark.parametrize("i", range(4))
def test_it(begun, i):
    time.sleep(0.25)
    print("ran", os.path.basename(__file__), i)
""")
    argv = [sys.executable, "-m", "pytest", "-s", "-q", "-p", "tpgpt2_ref.tests.conftest", "-p", "no:cacheprovider",
            "--share", str(tmp_path / "begun"), str(tmp_path)]
    both = [subprocess.Popen(argv, cwd=gpu_run.ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ran = [[line.strip(".") for line in p.communicate(timeout=60)[0].splitlines() if "ran" in line] for p in both]
    assert [p.returncode for p in both] == [0, 0] and all(ran)
    assert sorted(sum(ran, [])) == sorted(f"ran test_{name}.py {i}" for name in "ab" for i in range(4))


def test_the_commands_of_the_steps_are_understood(tmp_path):
    """Each command line gets past the parser of its command."""
    for quick in (False, True):
        for step in gpu_run.steps(tmp_path, 8, quick):
            if step.argv[1:3] == ["-m", "tpgpt2_ref"]:
                parser(step.argv[3:]).parse_args(step.argv[3:])  # exits if it does not understand


def test_a_step_that_fails_or_hangs_is_ended_and_logged(tmp_path):
    def step(name, code, limit=20.0):
        return gpu_run.run(gpu_run.Step(name, [sys.executable, "-c", code], limit), tmp_path, [])

    assert step("good", "print('hello')")["result"] == "ok" and (tmp_path / "good.out").read_text() == "hello\n"
    assert step("bad", "import sys; sys.exit('no')")["result"] == "failed with status 1"
    assert (tmp_path / "bad.log").read_text() == "no\n"
    each = [sys.executable, "-c", "import os, sys; sys.exit(os.environ['CUDA_VISIBLE_DEVICES'] == '5,4,6')"]
    parts = gpu_run.run(gpu_run.Step("parts", each, 20.0, 2, parts=3), tmp_path, ["4", "5", "6"])
    assert parts["result"] == "failed with status 0 1 0" and (tmp_path / "parts-3.log").exists()
    begin = time.monotonic()
    assert step("slow", "import time; time.sleep(60)", limit=1.0)["result"] == "stopped after its 1 s"
    assert time.monotonic() - begin < 10


def test_steps_run_side_by_side_on_gpus_of_their_own(tmp_path):
    def step(name, gpus, last=False):  # says which GPUs it saw, and when it ran
        code = ("import os, time; begin = time.time(); time.sleep(0.5); "
                "print(os.environ.get('CUDA_VISIBLE_DEVICES'), begin, time.time())")
        return gpu_run.Step(name, [sys.executable, "-c", code], 20.0, gpus, last=last)

    todo = [step("end", 0, last=True), step("a", 1), step("pair", 2), step("b", 1), step("four", 4)]
    table = gpu_run.run_all(todo, tmp_path, [["0", "1"], ["2", "3"]])
    assert {row["step"]: row["result"] for row in table} == {
        "end": "ok", "a": "ok", "pair": "ok", "b": "ok", "four": "left out: needs 4 GPUs"}
    said = {name: (tmp_path / f"{name}.out").read_text().split() for name in ("end", "a", "pair", "b")}
    seen = {name: words[0] for name, words in said.items()}
    assert seen == {"end": "0,1", "a": "0,1", "pair": "2,3", "b": "1,0"}  # its own first, then the machine's others
    begins, ends = ({name: float(words[i]) for name, words in said.items()} for i in (1, 2))
    assert max(begins[n] for n in ("a", "pair", "b")) < min(ends[n] for n in ("a", "pair", "b"))
    assert begins["end"] > max(ends[n] for n in ("a", "pair", "b"))


def test_what_the_minutes_do_not_hold_is_left_out(tmp_path):
    slow = [gpu_run.Step(f"slow{i}", [sys.executable, "-c", "import time; time.sleep(60)"], 50.0) for i in range(2)]
    table = gpu_run.run_all(slow, tmp_path, [["0"]], minutes=0.02)
    assert [row["result"] for row in table] == ["stopped after its 1 s", "left out: the 0.02 minutes were over"]


def test_the_list_of_a_machine_that_this_one_is_not(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", "--list", "--gpus", "8", "--only", "tests-*"])
    assert gpu_run.main() == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["tests-8", "8"], ["tests-4", "4"], ["tests-2", "2"], ["tests-1", "8"], ["tests-alone", "8"]]


def test_a_host_is_cut_into_machines(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert gpu_run.machines_of(2) == [["4", "5"], ["6", "7"]]
    assert gpu_run.machines_of(None) == gpu_run.machines_of(8) == [["4", "5", "6", "7"]]


def test_parts_become_one_file_with_its_samples(tmp_path):
    row = {"engine": "tpgpt2", "model": "gpt2", "dtype": "bfloat16", "tp": 1, "sum": "none", "rung": "graph",
           "prompt_len": 128, "us_per_step_median": 200.0, "us_per_step_p10": 190.0, "us_per_step_p90": 220.0}
    card = results.machine_card()
    for part, batch in (("a", 1), ("b", 8)):
        run = results.Run("decode", card, [{**row, "batch": batch}])
        results.save(run, tmp_path / "parts" / part, [[200.0, batch]])
    gpu_run.merge(tmp_path)
    (run,) = results.recorded("decode", tmp_path / "results")
    assert [r["batch"] for r in run.rows] == [1, 8]
    raw = json.loads((tmp_path / "results" / card["slug"] / "raw" / "decode.json").read_text())["rows"]
    assert raw == [{"us": [200.0, 1]}, {"us": [200.0, 8]}]


def test_timelines_become_one_file(tmp_path):
    card, row = results.machine_card(), {"rank": 0, "stage": "T0", "kind": "compute", "us": 1.23456, "op": None}
    for plan in ("shipped", "as-drawn"):
        said = {"machine": card, "model": "random:gpt2", "dtype": "bfloat16", "tp": 2, "plan": plan, "phase": "prefill",
                "batch": 8, "prompt_len": 512, "graph": False, "backend": "NAIVE", "rows": [row]}
        (tmp_path / f"trace-tp2-{plan}-prefill.out").write_text(json.dumps(said))
    layers = [{**row, "layer": f"h.{i}.mlp", "kind": kind} for i in (4, 5, 8, 9, 50) for kind in ("compute", "instant")]
    (tmp_path / "trace-tp2-halves.out").write_text(json.dumps({**said, "rung": "halves", "rows": layers}))
    (tmp_path / "trace-tp2-shipped-decode.out").write_text("")
    gpu_run.merge_traces(tmp_path)
    (hidden,) = results.recorded("hidden", tmp_path / "results")
    assert [(r["layer"], r["rung"]) for r in hidden.rows] == [("h.5.mlp", "halves"), ("h.8.mlp", "halves")]
    (run,) = results.recorded("timeline", tmp_path / "results")
    assert [(r["plan"], r["us"]) for r in run.rows] == [("as-drawn", 1.235), ("shipped", 1.235)]
    assert run.rows[0]["model"] == "gpt2"


def test_a_copy_without_git_gets_the_commit_it_was_told(tmp_path):
    run = results.Run("other", results.machine_card(), [{"n": 1}], "2026-01-01T00:00:00+00:00", "unknown")
    path = results.save(run, tmp_path / "results", [[1.0]])
    gpu_run.stamp(tmp_path, "abc123")
    assert json.loads((path.parent / "raw" / path.name).read_text())["commit"] == "abc123"
    assert results.load(path).commit == "abc123" and results.load(path).recorded_at == run.recorded_at

"""The command line as a stranger meets it: JSON, exit statuses, one clear line for each mistake."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tpgpt2_ref.cli import on_rank, parser
from tpgpt2_ref.errors import RankError

from .conftest import ROOT, cli_json, run_cli

MODEL = ("--model", "random:gpt2-test", "--device", "cpu")
BATCH = ("--prompt-ids", "1,2,3", "--prompt-ids", "9,8,7,6,5,4")


@pytest.fixture(scope="module")
def alone():
    return cli_json("generate", *MODEL, *BATCH, "--max-new-tokens", 6)


def test_generate_is_the_same_on_two_ranks(alone):
    assert [len(ids) for ids in alone["token_ids"]] == [6, 6]
    assert alone["tp"] == 1 and alone["collectives"] == {} and alone["backend"] == "NAIVE"
    drawn = cli_json("generate", *MODEL, *BATCH, "--max-new-tokens", 6, "--tp", 2, "--plan", "as-drawn")
    assert drawn["token_ids"] == alone["token_ids"]
    assert drawn["plan"] == "as-drawn" and drawn["collectives"] == {"all_reduce": 5, "all_gather": 7}
    assert {"load_s", "prefill_s", "decode_s"} <= drawn["timings"].keys()


def test_sampling_draws_the_same_tokens_at_every_tp():
    sampled = ("generate", *MODEL, *BATCH, "--max-new-tokens", 12, "--temperature", 1.0, "--top-k", 50, "--top-p", 0.9)
    one, two = cli_json(*sampled, "--seed", 3), cli_json(*sampled, "--seed", 3, "--tp", 2)
    assert one["token_ids"] == two["token_ids"]
    assert cli_json(*sampled, "--seed", 4)["token_ids"] != one["token_ids"]


def test_joins_the_ranks_of_torchrun(alone):
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
                           "--standalone", "-m", "tpgpt2_ref", "generate", *MODEL, *BATCH, "--max-new-tokens", "6",
                           "--json"], capture_output=True, text=True, cwd=ROOT, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one object, although two ranks ran
    assert result["tp"] == 2 and result["token_ids"] == alone["token_ids"]


def test_logits_on_file(tmp_path):
    got = []
    for tp in (1, 2):
        out = tmp_path / f"{tp}.npy"
        cli_json("logits", *MODEL, "--tp", tp, "--prompt-ids", "1,2,3,4", "--out", out)
        got.append(np.load(out))
    assert got[0].shape == (4, 257) and got[0].dtype == np.float32
    assert np.abs(got[0] - got[1]).max() < 1e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.npy", "2.npy"]  # no half-written file beside them


@pytest.fixture(scope="module")
def broken(checkpoint, tmp_path_factory):
    """A folder of checkpoints, each with one thing wrong."""
    import safetensors.torch as st

    folder, _ = checkpoint(n_layer=1, n_head=2, n_embd=16, n_positions=32, vocab_size=60)
    tensors, config = st.load_file(folder / "model.safetensors"), (folder / "config.json").read_text()
    name, root = "transformer.h.0.mlp.c_fc.weight", tmp_path_factory.mktemp("broken")

    def write(what, tensors, config=config):
        (root / what).mkdir()
        (root / what / "config.json").write_text(config)
        if tensors:
            st.save_file(tensors, root / what / "model.safetensors")

    write("no-weights", None)
    write("missing", {k: v for k, v in tensors.items() if k != name})
    write("extra", {**tensors, "transformer.h.7.mlp.c_fc.weight": tensors[name].clone()})
    write("misshapen", {**tensors, name: tensors[name].T.contiguous()})
    write("not-gpt2", tensors, config.replace('"gpt2"', '"llama"'))
    write("cut-short", tensors)
    whole = (root / "cut-short" / "model.safetensors").read_bytes()
    (root / "cut-short" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.mark.parametrize("what,says", [
    ("no-weights", "holds no weights"),
    ("missing", "tensor h.0.mlp.c_fc.weight is missing"),
    ("extra", "tensor transformer.h.7.mlp.c_fc.weight is not part of"),
    ("misshapen", "tensor transformer.h.0.mlp.c_fc.weight has shape (64, 16), config.json says (16, 64)"),
    ("not-gpt2", "model_type='llama'"),
    ("cut-short", "cannot be read as safetensors"),
])
def test_a_broken_checkpoint_is_named(broken, what, says):
    one_line(run_cli("logits", "--model", broken / what, "--prompt-ids", "1,2", "--out", broken / "out.npy"), says)
    assert not list(broken.glob("*out*"))


def test_two_ranks_refuse_with_one_line(broken):
    one_line(run_cli("generate", "--model", broken / "missing", "--prompt-ids", "1,2", "--tp", 2), "is missing")


@pytest.mark.parametrize("argv,says", [
    (["generate", "--model", "no/such/folder/here"], "is no folder with config.json"),
    (["generate", "--model", "random:gpt3"], "unknown configuration 'gpt3'; known: random:gpt2,"),
    (["generate", *MODEL, "--prompt-ids", "1,x"], "--prompt-ids takes whole numbers"),
    (["generate", *MODEL, "--prompt-ids", "1,257"], "id 257 lies outside the vocabulary of 257 (0 to 256)"),
    (["generate", *MODEL, "--prompt-ids", ",".join(["1"] * 129)], "129 tokens, the model has 128 positions"),
    (["generate", *MODEL], "no prompt: give --prompt TEXT"),
    (["generate", *MODEL, "--prompt", ""], "prompt 0 is empty"),
    (["generate", *MODEL, "--prompt-ids", "1", "--tp", "0"], "--tp must be at least 1"),
    (["generate", *MODEL, "--prompt-ids", "1", "--tp", "1000000"], "--tp 1000000: a rank is a process of 150 MB"),
    (["generate", *MODEL, "--prompt-ids", "1", "--top-p", "0"], "--top-p must lie in (0, 1]"),
    (["generate", *MODEL, "--prompt-ids", "1", "--temperature", "-1"], "--temperature must be 0"),
    (["generate", *MODEL, "--prompt-ids", "1", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
    (["generate", *MODEL, "--prompt-ids", "1", "--backend", "FOO"], "known: FLASH_ATTN,"),
    (["generate", *MODEL, "--prompt-ids", "1", "--sum", "pigeon"], "unknown all-reduce algorithm 'pigeon'; known"),
    (["generate", *MODEL, "--prompt-ids", "1", "--temperature", "nan"], "--temperature must be 0"),
    (["generate", *MODEL, "--prompt-ids", "1", "--temperature", "inf"], "--temperature must be 0"),
    (["generate", *MODEL, "--prompt-ids", "1", "--temperature", "1e-40"], "too small to divide by"),
    (["generate", *MODEL, "--prompt-ids", "1", "--seed", "-1"], "--seed must be a whole number"),
    (["generate", *MODEL, "--prompt-ids", "1", "--seed", str(2**64)], "--seed must be a whole number"),
    (["generate", *MODEL, "--prompt-ids", "1", "--seed", "five"], "argument --seed: invalid int value: 'five'"),
    (["generate", *MODEL, "--prompt", "\udcff"], "--prompt is no UTF-8 text"),
    (["generate", "--model", ""], "is no folder with config.json"),
    (["generate", "--model", "tiny/"], "is no folder with config.json"),
    (["generate", "--model", "x" * 5000 + "/x/x"], "is no folder with config.json"),
    (["logits", *MODEL, "--prompt-ids", "1", "--out", "/no/such/folder/x.npy"], "does not exist"),
    (["logits", *MODEL, "--prompt-ids", "1", "--out", "/tmp/" + "x" * 300], "cannot write there"),
    (["logits", *MODEL, "--prompt-ids", "1", "--out", "/tmp"], "cannot write there"),
    (["logits", *MODEL, "--prompt-ids", "1"], "required: --out"),
    ([], "required: COMMAND"),
])
def test_a_mistake_gets_one_clear_line(argv, says):
    one_line(run_cli(*argv), says)


def test_cuda_without_a_gpu():
    done = run_cli("generate", "--model", "random:gpt2-test", "--prompt-ids", "1", "--device", "cuda",
                   env={"CUDA_VISIBLE_DEVICES": ""})
    one_line(done, "no usable NVIDIA GPU: use --device cpu")


def one_line(done, says):
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and says in lines[0], done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in Linux's /proc")
def test_a_dead_rank_stops_the_others_and_is_named():
    p = subprocess.Popen([sys.executable, "-m", "tpgpt2_ref", "generate", *MODEL, "--prompt-ids", "1", "--tp", "2",
                          "--max-new-tokens", "120", "--json"], cwd=ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    ranks = wait_for_ranks(p.pid, 2)
    os.kill(ranks[1], signal.SIGKILL)
    start = time.monotonic()
    out, err = p.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert p.returncode == 1 and out == ""
    assert "rank 1 was killed by SIGKILL; the other ranks were stopped" in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())


def wait_for_ranks(parent: int, size: int) -> dict[int, int]:
    """{rank: pid} of a launcher's children, once they are all there."""
    for _ in range(400):
        found = {}
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            env = dict(v.split("=", 1) for v in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in v)
            if "RANK" in env:
                found[int(env["RANK"])] = int(pid)
        if len(found) == size:
            return found
        time.sleep(0.01)
    raise AssertionError("the ranks did not start")


@pytest.mark.parametrize("raised, says", [
    (RankError("rank 0: rank 1 sent nothing"), "rank 0: rank 1 sent nothing"),
    (RuntimeError("\nConnection closed\nby peer"), "rank 0: Connection closed"),
    (RuntimeError(), "rank 0: RuntimeError without a word"),
])
def test_a_failure_on_a_rank_names_it_once(raised, says, monkeypatch):
    def run(args, world):
        raise raised

    world = SimpleNamespace(size=2, rank=0)
    monkeypatch.setattr("tpgpt2_ref.parallel.world.World.join", lambda *a, **k: nullcontext(world))
    with pytest.raises(RankError) as e:
        on_rank(SimpleNamespace(run=run), SimpleNamespace(device="cpu", tp=2))
    assert str(e.value) == says


def test_doctor_sums_on_two_ranks():
    result = cli_json("doctor")
    assert result["two_ranks"]["cpu"]["ok"], result
    assert result["backends"]["NAIVE"]["runs"]
    for row in result["backends"].values():
        assert row["why"]


@pytest.mark.parametrize("command", ["generate", "logits", "doctor", "select"])
def test_help_is_for_strangers(command):
    done = run_cli(command, "--help")
    assert done.returncode == 0 and "--json" in done.stdout


@pytest.mark.parametrize("device, tokens, more, sums", [
    ("cuda", 20, (), "c10d"), ("cuda", 20, ("--graphs",), "auto"), ("cuda", 300, (), "auto"), ("cpu", 20, (), "auto"),
    ("cuda", 20, ("--sum", "push"), "push")])
def test_a_short_run_on_gpus_sets_nothing_up_that_costs_more_than_it_saves(device, tokens, more, sums):
    argv = ["generate", "--prompt-ids", "1", "--max-new-tokens", str(tokens), *more]
    args = parser(argv).parse_args(argv)
    args.device = device
    args.module.check(args)
    assert args.sum == sums and args.short == (device == "cuda" and tokens < 256 and "--graphs" not in more)


@pytest.mark.gpu
def test_a_short_run_says_that_it_records_no_graphs():
    argv = ["generate", "--prompt-ids", "10,20,30", "--max-new-tokens", "20", "--device", "cuda", "--dtype", "float16"]
    short, graphs = cli_json(*argv), cli_json(*argv, "--graphs")
    assert "sooner without" in short["eager_because"] and graphs["eager_because"] is None
    assert short["token_ids"][0][:5] == graphs["token_ids"][0][:5]

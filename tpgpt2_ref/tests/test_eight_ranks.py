"""Eight ranks on a CPU, the most that share memory on one host: nothing of GPT-2 is a multiple of eight. Its 12 and 25
heads, its MLP and its vocabulary are padded, and some ranks have nothing but padding."""
from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tpgpt2_ref.config import FAMILY, padded
from tpgpt2_ref.cost import forward as cost_forward
from tpgpt2_ref.cost.simulate import fake_forward
from tpgpt2_ref.gpt2 import GPT2Model
from tpgpt2_ref.kernels.clusters.emulated import emulated
from tpgpt2_ref.kernels.clusters.shape import HEAD, UNITS
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.trace import OPS

from .cluster_cases import SMALL as OF_CLUSTERS
from .cluster_cases import build_model, models_of, run_step, side_by_side
from .conftest import cli_json, on_ranks
from .eight_cases import NEW, PROMPTS, RANKS, all_of
from .test_clusters import emulator, held, rows_of
from .test_gpt2 import hold

ALL = dict(n_layer=1, n_positions=64, bos_token_id=0)
SHAPES = {"12 heads": dict(ALL, n_head=12, n_embd=48, n_inner=200, vocab_size=257, eos_token_id=256),
          "25 heads": dict(ALL, n_head=25, n_embd=100, n_inner=70, vocab_size=1001, eos_token_id=1000)}


@pytest.fixture(scope="module")
def told(checkpoint):
    """What one rank says by shape, what each of eight says, Hugging Face's models, and the benches' rows by rank."""
    made = {name: checkpoint(**shape) for name, shape in SHAPES.items()}
    folders = {name: folder for name, (folder, _) in made.items()}
    one, ranks = all_of(World.single(), folders)[0], on_ranks(RANKS, all_of, folders)
    return SimpleNamespace(one=one, ranks=[texts for texts, _ in ranks], rows=[rows for _, rows in ranks],
                           hf={name: hf for name, (_, hf) in made.items()})


@pytest.mark.parametrize("name", SHAPES)
def test_eight_ranks_give_hugging_faces_tokens(told, name):
    """Both plans, though ranks hold nothing but padding of the heads, the MLP or the vocabulary."""
    plans = [{plan: rank[name][plan] for plan in ("shipped", "as-drawn")} for rank in told.ranks]
    hold(plans, told.hf[name], PROMPTS, NEW, RANKS, 1)


@pytest.mark.parametrize("name", SHAPES)
def test_eight_ranks_draw_the_tokens_of_one(told, name):
    """Sampled, in the graphs' way, and behind fused sums."""
    one = told.one[name]
    assert one["graphs"][0] == one["shipped"]["new"] and one["drawn"] == one["graphs"][2] != one["graphs"][1]
    for rank in told.ranks:
        assert all(rank[name][what] == one[what] for what in ("drawn", "graphs", "steps"))


def test_the_benches(told):
    sums, steps = told.rows[0][: len(OPS)], told.rows[0][len(OPS) :]
    assert [(r["op"], r["path"], r["world"]) for r in sums] == [(op, "gloo", RANKS) for op in OPS]
    assert [(r["tp"], r["sum"], r["rung"]) for r in steps] == [(RANKS, "gloo", "eager")] * 2
    assert all(rows[: len(OPS)] == sums for rows in told.rows)  # the slowest rank's times, whoever says them


@pytest.mark.parametrize("name", FAMILY)
def test_a_model_of_the_family_on_eight_ranks(name):
    """What each rank would hold: every head once, and the padding that the cost model counts too."""
    config = FAMILY[name]
    with torch.device("meta"):
        ranks = [GPT2Model(config, World(rank, RANKS), None) for rank in range(RANKS)]
    heads, d = -(-config.n_head // RANKS), config.n_embd
    for model in ranks:
        block = model.h[0]
        assert block.attn.c_proj.weight.shape == (d, heads * config.head_size)
        assert block.mlp.c_fc.local == padded(config.inner, cost_forward.INNER_MULTIPLE * RANKS) // RANKS
        assert model.lm_head.local == cost_forward.local_vocab(config, RANKS)
        assert block.mlp.c_fc.local % UNITS == 0 or config.head_size != HEAD  # as the cluster kernels want it
    assert sum(min(heads, max(0, config.n_head - rank * heads)) for rank in range(RANKS)) == config.n_head


@pytest.mark.parametrize("plan", ["shipped", "as-drawn"])
def test_what_eight_ranks_send_is_what_is_priced(plan):
    config = FAMILY["gpt2-xl"]
    sent = sorted((r.op, r.bytes) for r in fake_forward(config, RANKS, plan, 3, torch.bfloat16))
    priced = cost_forward.collectives(config, RANKS, 1, 3, plan)
    assert sent == sorted((op, nbytes) for op, nbytes, times in priced for _ in range(times))


@emulator
def test_cluster_kernels_among_eight():
    """A step's kernels are their twins, rank by rank, and a step has the tokens of one rank's; five have no head."""
    config = replace(OF_CLUSTERS, n_layer=1, n_positions=64, n_inner=UNITS * RANKS)
    models, rows = models_of(RANKS, config), rows_of(17, 30)
    ranks = side_by_side(models, rows, emulated, temperature=0.5)
    alone = side_by_side([build_model(config)], rows, emulated, temperature=0.5)
    held(ranks)
    run_step(ranks, 1)
    for seed in range(2):
        run_step(alone, seed)
    assert all(torch.equal(rank.state.tokens, alone[0].state.tokens) for rank in ranks)


# --- the commands

SMALL = ("--model", "random:gpt2-test", "--device", "cpu", "--tp", RANKS)


def test_generate():
    said = cli_json("generate", *SMALL, "--prompt-ids", "1,2,3", "--max-new-tokens", 3)
    alone = cli_json("generate", *SMALL[:-2], "--prompt-ids", "1,2,3", "--max-new-tokens", 3)
    assert said["tp"] == RANKS and said["token_ids"] == alone["token_ids"]


def test_trace(tmp_path):
    got = cli_json("trace", *SMALL, "--plan", "as-drawn", "--repeats", 1, "--out", tmp_path / "trace.json")
    assert got["counts"] == {"all_reduce": 5, "all_gather": 7} and got["tp"] == RANKS
    slices = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert {r["rank"] for r in got["rows"]} == {e["pid"] for e in slices} == set(range(RANKS))


def test_one_ranks_own_part():
    rows = cli_json("bench", "decode", *SMALL[:-2], "--imagine", RANKS, "--batch", 1, "--prompt-len", 4, "--new-tokens",
                    3, "--no-peer")["rows"]
    assert [(r["engine"], r["tp"], r["sum"]) for r in rows] == [("tpgpt2", RANKS, "none")]

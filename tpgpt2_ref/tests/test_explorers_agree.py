"""What the page's explorers answer is what Python answers: thousands of random questions, asked in one node process.

Without node a headless Chromium answers; without either the tests are skipped.
"""
from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from tpgpt2_ref.attention import matrix, vllm_rules
from tpgpt2_ref.attention.matrix import MATRIX, PACKAGES
from tpgpt2_ref.commands import cost as cost_command
from tpgpt2_ref.commands import select as select_command
from tpgpt2_ref.config import FAMILY
from tpgpt2_ref.cost import collectives as cost_collectives
from tpgpt2_ref.cost import forward as cost_forward
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.explorers import collective, data, heads, script
from tpgpt2_ref.recorded import results

MANY = 5000
NODE = shutil.which("node") or shutil.which("nodejs")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not (NODE or CHROMIUM), reason="neither node nor Chromium on this machine")

ASK = """
function answer([kind, ...query]) {
  try { return tpgpt2[kind](...query); } catch (e) {
    if (e instanceof tpgpt2.UserError) return { error: e.message };
    return { crash: String(e.stack) };
  }
}
"""


def in_javascript(questions: list, folder, code: str | None = None, known: str | None = None) -> list:
    """The page's answers. code, known: other sources or data than its own."""
    text = (known or script.data_script()) + (code or script.script(drawn=False)) + ASK
    asked = f"const questions = {json.dumps(questions)};\n"
    if NODE:
        (folder / "ask.js").write_text(f"{text}{asked}console.log(JSON.stringify(questions.map(answer)));")
        done = subprocess.run([NODE, folder / "ask.js"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)
    (folder / "ask.js").write_text(f"{text}{asked}document.body.textContent = JSON.stringify(questions.map(answer));")
    (folder / "ask.html").write_text("<!doctype html><body><script src=ask.js></script>")
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile",
                           "--virtual-time-budget=60000", "--dump-dom", (folder / "ask.html").as_uri()],
                          capture_output=True, text=True)
    return json.loads(done.stdout[done.stdout.index("<body>") + 6 : done.stdout.rindex("</body>")]
                      .replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def select(query: dict, monkeypatch) -> dict:
    """As `select` answers: a query holds its options' texts, and the environment."""
    if environment := query.get("environment"):
        monkeypatch.setenv("VLLM_ATTENTION_BACKEND", environment)
    else:
        monkeypatch.delenv("VLLM_ATTENTION_BACKEND", raising=False)
    return select_command.ours(SimpleNamespace(version=None, **query))


def cost(query: dict, monkeypatch=None) -> dict:
    """As `cost forward` answers, but for where more ranks pay, which takes it 26 forwards."""
    cost_command.check(SimpleNamespace(what="forward", **query))
    model = MACHINES[query["machine"]]
    how = {k: query[k] for k in ("rung", "path", "plan")}
    return {"what": "forward", **cost_forward.forward(
        model["model"], FAMILY[query["gpt2"]], query["tp"], query["batch"], query["tokens"], query["context"], **how),
        "machine": model["label"]}


MACHINES = json.loads(data.embedded())["machines"]
PYTHON = {"select": select, "cost": cost, "collective": lambda q, _: collective.collective(q),
          "heads": lambda q, _: heads.heads(q), "select_as": lambda v, q, _: vllm_rules.select_as(v, **q)}


def in_python(question, monkeypatch) -> dict:
    kind, *query = question
    try:
        return PYTHON[kind](*query, monkeypatch)
    except UserError as e:
        return {"error": str(e)}


def random_select(dice: random.Random) -> dict:
    def seldom(odd, usual):
        return odd if dice.random() < 0.02 else dice.choice(usual)

    names = [*MATRIX, *matrix.ALIASES, "FLASH_ATTN", "NO_SUCH"]
    some = ",".join(dice.sample(sorted(PACKAGES), dice.randint(0, len(PACKAGES)))) or "none"
    platform = seldom("tpu", ["cuda"] * 4 + ["rocm", "cpu"])
    cuda = platform == "cuda"
    return {"platform": platform,
            "capability": seldom("x", ["7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0", "9"])
            if cuda or dice.random() < 0.05 else None,
            "cuda_version": dice.choice(["11.8", "12.1", "12.3", "12.4", "12.8", "13.0"]) if cuda else None,
            "installed": seldom("nothing-known", ["all", some, some, some.replace("-", "_")]),
            "head_size": seldom(0, [32, 64, 64, 80, 96, 128, 160, 192, 224, 250, 256, 264, 512, 576]),
            "dtype": seldom("float64", ["float16", "bfloat16", "float32"]),
            "block_size": dice.choice([16, 16, 16, 32, 8, 1, 64]),
            "cache_dtype": seldom("fp8_e5m2", ["auto", "auto", "fp8", "fp8_e4m3"]),
            "force": dice.choice([None] * 3 * len(names) + names),
            "environment": dice.choice([None] * 3 * len(names) + names)}


def random_cost(dice: random.Random) -> dict:
    gpt2 = dice.choice(list(FAMILY))
    tokens = dice.choice([1, 1, 1, dice.randint(2, 1030)])
    return {"machine": dice.choice(sorted(MACHINES)), "gpt2": gpt2,
            "tp": dice.choice([1, 2, 2, 3, 4, 4, 8]), "batch": dice.choice([1, 2, 7, 8, 31, 32, 64, 100, 500]),
            "tokens": tokens, "context": 0 if dice.random() < 0.2 or tokens > 500 else dice.randint(0, 500),
            "rung": dice.choice([None] * 12 + ["+pdl", "+sum", "graph", "eager", "fused", "nowhere"]),
            "path": dice.choice([None] * 9 + ["push", "nccl", "one_shot", "nccl/host-memory", "gloo", "bare nccl"]),
            "plan": dice.choice(["shipped", "as-drawn"])}


def random_collective(dice: random.Random) -> dict:
    return {"algorithm": dice.choice([*collective.ALGORITHMS * 3, "tree"]), "world": dice.randint(0, 64),
            "bytes": dice.choice([dice.randint(0, 3), dice.randint(1, 1 << 34), 1 << dice.randint(4, 34)])}


def random_heads(dice: random.Random) -> dict:
    return {"gpt2": dice.choice([*FAMILY, *FAMILY, "gpt3"]), "tp": dice.randint(0, 16),
            "cut": dice.choice([*heads.CUTS * 4, "no"])}


def random_select_as(dice: random.Random) -> tuple[str, dict]:
    names = sorted({name for v in vllm_rules.versions() for name in vllm_rules.rules()[v]["names"]}) + ["NO_SUCH"]
    platform, packages = dice.choice(["cuda"] * 5 + ["rocm", "cpu"]), data.vllm()["packages"]
    query = {"platform": platform, "capability": dice.choice([70, 75, 80, 86, 89, 90, 100, 103, 110, 120])
             if platform == "cuda" else None, "head_size": dice.choice([16, 32, 64, 72, 80, 96, 128, 256, 512, 576]),
             "dtype": dice.choice(["float16", "bfloat16", "float32"]),
             "cache_dtype": dice.choice(["auto", "auto", "auto", "fp8", "fp8_e4m3", "fp8_e5m2", "int3"]),
             "block_size": dice.choice([None, 1, 8, 16, 16, 32, 64, 128]),
             "installed": dice.choice([None, dice.sample(packages, dice.randint(0, len(packages)))])}
    for field in ("program", "env", "per_kind"):
        query[field] = dice.choice([None] * 2 * len(names) + names)
    if dice.random() < 0.02:
        query["speed"] = 1
    return dice.choice([*vllm_rules.versions() * 9, "0.1"]), {k: v for k, v in query.items() if dice.random() < 0.95}


RANDOM = {"select": random_select, "select_as": random_select_as, "cost": random_cost,
          "collective": random_collective, "heads": random_heads}


def same(a, b) -> bool:
    """Equal, floats to 1 part in 10^9: newer Pythons add with less rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=1e-9)
    return a == b


def but_crossover(answer: dict) -> dict:
    return {k: v for k, v in answer.items() if k != "crossover_batch"}


@pytest.fixture(scope="module")
def questions() -> list:
    dice = random.Random(17)
    made = [(kind, make(dice)) for kind, make in RANDOM.items() for _ in range(MANY)]
    return [(kind, *(query if isinstance(query, tuple) else (query,))) for kind, query in made]


@pytest.fixture(scope="module")
def page(questions, tmp_path_factory) -> list:
    return in_javascript(questions, tmp_path_factory.mktemp("page"))


@pytest.mark.parametrize("kind", RANDOM)
def test_page_and_python_agree(kind, questions, page, monkeypatch):
    asked = [(q, a) for q, a in zip(questions, page, strict=True) if q[0] == kind]
    wrong = [(q, python, a) for q, a in asked if not same(python := in_python(q, monkeypatch), but_crossover(a))]
    assert not wrong, f"{len(wrong)} of {len(asked)}: {wrong[0]}"
    errors = sum(bool(a.get("error")) for _, a in asked)
    assert 0.02 < errors / len(asked) < 0.7  # both kinds of answer were compared


def test_page_and_python_agree_on_where_more_ranks_pay(questions, page):
    asked = [(q, a) for (*_, q), a in zip(questions, page, strict=True) if "crossover_batch" in a]
    for q, a in asked[:120]:
        how = {k: q[k] for k in ("rung", "path", "plan")}
        model, config = MACHINES[q["machine"]]["model"], FAMILY[q["gpt2"]]
        assert a["crossover_batch"] == cost_forward.crossover(model, config, q["tp"], q["tokens"], q["context"],
                                                              **how), q
    assert len({a["crossover_batch"] for _, a in asked}) > 3


def test_the_command_says_what_the_page_says(tmp_path):
    """The whole way once: the file that the command reads, and its answer as the page gives it."""
    query = {"gpt2": "gpt2-xl", "tp": 2, "batch": 8, "tokens": 1, "context": 192, "rung": None, "path": None,
             "plan": "shipped"}
    model = results.BOOK_RESULTS / "2x-nvidia-h200" / "cost_model.json"
    said = cost_command.run(SimpleNamespace(what="forward", model=str(model), **query), None)
    [page] = in_javascript([("cost", {"machine": "2x-nvidia-h200", **query})], tmp_path)
    assert same(page, {k: v for k, v in said.items() if k != "this_machine"})  # a page runs on no machine


MUTATIONS = {  # a word of the page's sources or data: another in its place
    "the selector's order": ('"cpu":["NAIVE","SDPA"', '"cpu":["SDPA","NAIVE"'),
    "a comparison": ("notAfter(platform.capability, most)", "T.before(platform.capability, most)"),
    "a rule of vLLM's": ('"stops_at_first":true', '"stops_at_first":false'),
    "a sum too few": ("2 * config.n_layer + 1", "2 * config.n_layer"),
    "the padding": ("Math.ceil(n / multiple)", "Math.floor(n / multiple)"),
    "a ring's steps": ("ring: 2 * peers, one_shot: 1", "ring: peers, one_shot: 1"),
    "the naive half": ("(r * 3 * d) / tp", "(r * 2 * d) / tp"),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_change_of_the_page_alone_is_seen(what, questions, page, tmp_path):
    text, other = MUTATIONS[what]
    known, code = script.data_script(), script.script(drawn=False)
    assert (known + code).count(text) >= 1
    some = slice(None, None, 25)
    changed = in_javascript(questions[some], tmp_path, code.replace(text, other), known.replace(text, other))
    assert any(not same(a, b) for a, b in zip(page[some], changed, strict=True))


@pytest.mark.parametrize("module, name, value", [(cost_forward, "KEY", 16), (cost_forward, "BY_PUSH", ("+sum",)),
                                                 (matrix, "FLASH_ATTN", ("FLASH_ATTN_2",)),
                                                 (cost_collectives, "ring_scale", lambda *a: (1.0, 1.0)),
                                                 (collective, "ALGORITHMS", ("ring",))],
                         ids=lambda v: getattr(v, "__name__", str(v)).rpartition(".")[2])
def test_a_change_of_python_alone_is_seen(module, name, value, questions, page, monkeypatch):
    monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("tpgpt2_ref.attention.selector.FLASH_ATTN", matrix.FLASH_ATTN)
    monkeypatch.setattr("tpgpt2_ref.cost.forward.predict", cost_collectives.predict)
    some = slice(None, None, 25)
    assert any(not same(in_python(q, monkeypatch), but_crossover(a))
               for q, a in zip(questions[some], page[some], strict=True))


def test_every_algorithm_sums_and_its_steps_and_bytes_are_the_formulas(tmp_path):
    """Each call, step by step as the page draws it: every rank ends with every part, in the steps and bytes said."""
    code = script.script(drawn=False) + """
tpgpt2.played = ([algorithm, n]) => {
  const rounds = tpgpt2.rounds(algorithm, n), moves = rounds.flatMap((r) => r.moves);
  return { whole: rounds.at(-1).after.every((row) => row.every((held) => held.size === n)),
    steps: rounds.filter((r) => r.moves.length).length, barriers: rounds.filter((r) => r.barrier).length,
    chunks_out: [...Array(n).keys()].map((r) => moves.filter((m) => m.from === r).length) };
};
"""
    asked = [(algorithm, n) for algorithm in collective.ALGORITHMS for n in range(2, 9)]
    played = in_javascript([("played", q) for q in asked], tmp_path, code)
    for (algorithm, n), found in zip(asked, played, strict=True):
        said = collective.collective({"algorithm": algorithm, "world": n, "bytes": n})
        assert found == {"whole": True, "steps": said["steps"], "barriers": said["barriers"],
                         "chunks_out": [said["bytes_out"]] * n}, (algorithm, n)


def test_bytes_are_those_that_the_algorithms_say_of_themselves():
    from tpgpt2_ref.parallel.all_reduce.base import AllReduce
    from tpgpt2_ref.parallel.all_reduce.one_shot import OneShotAllReduce
    from tpgpt2_ref.parallel.all_reduce.push import PushAllReduce
    from tpgpt2_ref.parallel.all_reduce.two_shot import TwoShotAllReduce
    from tpgpt2_ref.parallel.all_reduce.two_shot_push import TwoShotPushAllReduce

    for name, cls in {"ring": AllReduce, "one_shot": OneShotAllReduce, "two_shot": TwoShotAllReduce,
                      "push": PushAllReduce, "two_shot_push": TwoShotPushAllReduce}.items():
        for n in (2, 4, 8):
            said = collective.collective({"algorithm": name, "world": n, "bytes": 1536})
            assert said["bytes_out"] == pytest.approx(cls.bytes_out(1536, n)), name


@pytest.mark.parametrize("gpt2", ["gpt2", "gpt2-xl"])
def test_heads_are_dealt_as_the_layer_deals_them(gpt2):
    from tpgpt2_ref.parallel.fake import fake_world
    from tpgpt2_ref.parallel.linear import QKVParallelLinear

    config = FAMILY[gpt2]
    said = heads.heads({"gpt2": gpt2, "tp": 2, "cut": "by head"})
    with fake_world(2) as world:
        layer = QKVParallelLinear(config.n_embd, config.head_size, config.n_head, world)
    assert [layer.start, layer.stop] == said["ranks"][0]["q"] and layer.local == said["qkv_width"]

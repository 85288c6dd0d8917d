"""The ledger: 61 claims, each judged by what its cell finds, each able to come out otherwise, and the pages agree."""
import ast
import importlib.util
import json
import re
import shutil
import subprocess
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpgpt2_ref.attention import vllm_rules
from tpgpt2_ref.commands import claims as command
from tpgpt2_ref.course import claims, judge
from tpgpt2_ref.course.claims import ClaimError, ledger
from tpgpt2_ref.notebook import Ranks
from tpgpt2_ref.pictures.diagrams import DIAGRAMS

BOOK = Path(__file__).parents[1] / "book"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CLAIMS = list(ledger().values())
each = pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: f"claim {c.id}")


@pytest.fixture(scope="module")
def ranks():
    with Ranks(2, device="cpu") as ranks:
        yield ranks


def run(claim, ranks=None):
    """What the claim's cell shows."""
    shown = []
    exec(claim.cell, {"judge": judge, "ranks": ranks,
                      "claim": lambda number, **found: shown.append(claims.judged(number, **found))})
    [judgement] = shown
    return judgement


def test_every_claim_is_there_once_and_whole():
    assert list(ledger()) == list(range(1, 62))
    for claim in CLAIMS:
        name = "Cost table" if claim.diagram == "cost" else f"{claim.diagram} "
        [boxes] = [boxes for diagram, boxes in DIAGRAMS.items() if diagram.startswith(name)]
        assert claim.box in boxes, claim.id
        assert claim.words and claim.so_instead and claim.today and claim.sources, claim.id
        assert (BOOK / f"{claim.chapter}.ipynb").exists(), claim.id
        assert (claim.holds == "cases") == bool(claim.cases), claim.id
    assert len({claim.words for claim in CLAIMS}) == 61


@each
def test_the_cell_comes_to_the_ledgers_verdict(claim, request):
    judgement = run(claim, request.getfixturevalue("ranks") if "ranks" in claim.cell else None)
    assert (judgement.claim.id, judgement.verdict) == (claim.id, claim.verdict)
    assert (judgement.machine is not None) == (claim.kind == "measured")
    html = judgement._repr_html_()
    assert f'data-claim="{claim.id}" data-verdict="{claim.verdict}"' in html and claim.anchor in html
    assert claim.words in repr(judgement)


@each
def test_no_verdict_is_typed(claim):
    """A cell's `found` is what a witness says: it calls one, and holds no yes or no of its own."""
    [call] = [node for node in ast.walk(ast.parse(claim.cell)) if isinstance(node, ast.Call)
              and getattr(node.func, "id", "") == "claim"]
    [found] = [k.value for k in call.keywords if k.arg == "found"]
    names = {node.id for node in ast.walk(found) if isinstance(node, ast.Name)}
    assert "judge" in names and any(isinstance(node, ast.Call) for node in ast.walk(found))
    assert not [n for n in ast.walk(found) if isinstance(n, ast.Constant) and isinstance(n.value, bool)]
    assert not [n for n in ast.walk(found) if isinstance(n, ast.Compare)]


def other(value):
    """Something else of the same form."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, other(value[0])] if value else ["all_gather"]
    return {**value, next(iter(value)): None} if isinstance(value, dict) else f"not {value}"


def worlds(claim) -> dict:
    """{verdict: a finding that comes to it}, from the claim's expectation alone."""
    drawn = claim.drawn
    if claim.holds == "equals":
        return {"right": drawn, "wrong": other(drawn)}
    if claim.holds == "within":
        least, most = drawn
        return {"right": [least, most], "wrong": [most + 1], "vague": [least, most + 1]}
    if claim.holds == "versions":
        return {"right": {"0.11.0": drawn, "0.33": drawn}, "outdated": {"0.11.0": drawn, "0.33": other(drawn)},
                "wrong": {"0.11.0": other(drawn), "0.33": drawn}}
    first, *rest = claim.cases
    return {"right": dict.fromkeys(claim.cases, drawn), "wrong": dict.fromkeys(claim.cases, other(drawn)),
            "vague": {first: drawn, **dict.fromkeys(rest, other(drawn))}}


@each
def test_in_the_opposite_world_the_verdict_changes(claim):
    found = worlds(claim)
    assert {verdict: claim.judge(world) for verdict, world in found.items()} == {v: v for v in found}
    assert claim.verdict in found and len(found) > 1
    for verdict, world in found.items():
        if verdict == claim.verdict:
            assert claims.judged(claim.id, world, "a machine").verdict == verdict
        else:
            with pytest.raises(ClaimError, match=f"claim {claim.id} comes out {verdict}"):
                claims.judged(claim.id, world, "a machine")


@given(st.sampled_from([c for c in CLAIMS if c.holds == "equals"]), st.integers() | st.text() | st.booleans()
       | st.lists(st.integers()))
def test_anything_but_what_was_drawn_is_wrong(claim, found):
    assert claim.judge(found) == ("right" if repr(found) == repr(claim.drawn) else "wrong")


def test_a_finding_that_cannot_be_judged_is_refused():
    for number, found in ((16, {"float32": "FLASH_ATTN"}), (16, True), (7, {"0.11.0": []}), (99, 1), (57, [])):
        with pytest.raises(ClaimError):
            claims.judged(number, found, "a machine")
    with pytest.raises(ClaimError, match="say on which machine"):
        claims.judged(57, [0.001])


def changed(number: int) -> str:
    """The verdict that a claim's cell comes to in a world that was changed."""
    try:
        return run(ledger()[number]).verdict
    except ClaimError as e:
        return re.search(r"comes out (\w+)", str(e))[1]


def test_the_witnesses_see_a_changed_world(monkeypatch):
    """Not only the comparison can come out otherwise: what it compares is looked up, counted and measured."""
    def pretend(rows):
        for place in (judge, judge.model):
            monkeypatch.setattr(place, "rows", lambda *how: rows)

    drawn = judge.rows(plan="as-drawn")
    pretend(drawn)
    assert changed(28) == "right"
    pretend(drawn[:1])
    assert [changed(n) for n in (35, 58, 61)] == ["wrong", "wrong", "wrong"]
    pretend(drawn[:3])
    assert changed(58) == "right"
    monkeypatch.undo()

    slow = [{**r, "us_median": r["bytes"]} for r in judge.recorded("collectives").rows]  # 2 us an element
    machine = type("Run", (), {"rows": slow, "label": "a slow machine"})
    monkeypatch.setattr(judge.runs, "recorded", lambda *which: machine)
    assert [changed(n) for n in (57, 40)] == ["right", "right"]
    monkeypatch.undo()

    other_rules = json.loads(json.dumps(vllm_rules.rules()))
    for version in ("0.11.0", "0.33"):
        rules = other_rules[version]
        rules["platforms"]["rocm"]["order"].insert(0, {"backend": "XFORMERS", "at": "", "when": {"cache": ["fp8"]}})
        rules["backends"].setdefault("XFORMERS", {"checks": [], "late": []})
        rules["backends"]["FLASH_ATTN"]["checks"][0][2]["heads"] = [64]
        rules["asked"].reverse()
    other_rules["0.11.0"]["names"].append("TRITON")
    monkeypatch.setattr(vllm_rules, "rules", lambda: other_rules)
    assert {n: changed(n) for n in (7, 10, 42, 45, 48, 49)} == {
        7: "wrong", 10: "wrong", 42: "wrong", 45: "right", 48: "right", 49: "wrong"}


@pytest.mark.parametrize("chapter", sorted({claim.chapter for claim in CLAIMS}))
def test_the_chapter_judges_its_claims_as_the_ledger_says(chapter):
    path = BOOK / f"{chapter}.ipynb"
    machines = claims.agree([path])
    assert {number: bool(machine) for number, machine in machines.items()} == {
        c.id: c.kind == "measured" for c in CLAIMS if c.chapter == chapter}


def test_a_notebooks_stored_lines_are_read_back(tmp_path):
    def notebook(*lines):
        outputs = [{"data": {"text/html": line._repr_html_()}} for line in lines]
        (tmp_path / "links.ipynb").write_text(json.dumps({"cells": [{"outputs": outputs}]}))
        return claims.judged_in(tmp_path / "links.ipynb")

    line = claims.judged(57, [0.001], 'two "H200" & a CPU')
    assert notebook(line, claims.judged(27, 384)) == {57: ("wrong", 'two "H200" & a CPU'), 27: ("wrong", "")}
    with pytest.raises(ClaimError, match="shows claim 27 as right"):
        notebook(claims.judged(27, 384), claims.Judgement(ledger()[27], 192, "right", None))
    of_links = [claims.judged(c.id, worlds(c)[c.verdict]) for c in CLAIMS if c.chapter == "links"]
    notebook(*of_links, line)
    assert claims.agree([tmp_path / "links.ipynb"]) == {50: "", 51: "", 52: "", 53: ""}
    notebook(*of_links[1:])
    with pytest.raises(ClaimError, match="judges no claim 50"):
        claims.agree([tmp_path / "links.ipynb"])
    notebook(*of_links, claims.Judgement(ledger()[27], 192, "right", None))
    with pytest.raises(ClaimError, match="shows claim 27 as right, claims.toml says wrong"):
        claims.agree([tmp_path / "links.ipynb"])


def test_the_command_lists_them():
    def listed(*words):
        parser = ArgumentParser()
        command.add_arguments(parser)
        return command.run(parser.parse_args(words), None)

    everything = listed()
    assert len(everything["claims"]) == 61 and json.dumps(everything)
    assert {"id", "claim", "verdict", "kind", "so_instead", "sources", "version"} <= everything["claims"][0].keys()
    counts = Counter(c.verdict for c in CLAIMS)
    assert f"61 claims: {counts['right']} right, {counts['wrong']} wrong" in command.show(everything)
    assert [r["diagram"] for r in listed("--diagram", "cost", "--verdict", "vague")["claims"]] == ["cost"]
    with pytest.raises(claims.UserError, match="no verdict 'maybe'"):
        listed("--verdict", "maybe")


@pytest.fixture(scope="module")
def ledger_page():
    """The extension that makes the ledger's page."""
    spec = importlib.util.spec_from_file_location("ledger_page", BOOK / "_ext" / "ledger_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_each_claim_once_with_its_links(ledger_page):
    html = ledger_page.page(CLAIMS, {57: "a machine", 27: ""})
    rows = re.findall(r'<tr id="claim-(\d+)" data-diagram="(\w+)"', html)
    assert sorted(rows) == sorted((str(c.id), str(c.diagram)) for c in CLAIMS)
    assert [diagram for _, diagram in rows] == sorted(diagram for _, diagram in rows)  # the cost table comes last
    assert "Measured on a machine." in html and 'href="qkv_split.html#judged-27"' in html
    assert 'href="qkv_split.html">' in html  # a claim that its chapter does not judge: no place to lead to
    assert "https://github.com/vllm-project/vllm/blob/v0.11.0/vllm/model_executor/models/gpt2.py#L99" in html
    for page, place in re.findall(r'href="code/(\w+)\.html#([\w-]+)"', html):
        assert place.endswith("-py") and (BOOK / "code" / f"{page}.md").exists()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_the_page_filters_by_three_choices(ledger_page, tmp_path):
    page = tmp_path / "ledger.html"
    page.write_text(f"""{ledger_page.page(CLAIMS, {})}<script>{(BOOK / "assets" / "ledger.js").read_text()}</script>
<pre></pre><script>
function choose(name, value) {{
  var select = document.querySelector("select[name=" + name + "]");
  select.value = value;
  select.dispatchEvent(new Event("change", {{bubbles: true}}));
  var rows = document.querySelectorAll("tbody tr:not([hidden])").length;
  document.querySelector("pre").append(rows + " " + document.querySelector(".ledger-count").textContent + "\\n");
}}
choose("verdict", "wrong"); choose("diagram", "2"); choose("kind", "cited"); choose("verdict", "");
choose("verdict", "outdated");
</script>""")
    dom = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}",
                          "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    *said, nothing = re.search(r"<pre>(.*?)</pre>", dom, re.S)[1].strip().split("\n")

    def left(**wanted):
        rows = [c for c in CLAIMS if all(str(getattr(c, k)) == v for k, v in wanted.items())]
        counts = Counter(c.verdict for c in rows)
        told = ", ".join(f"{counts[v]} {v}" for v in claims.VERDICTS if counts[v])
        return f"{len(rows)} {len(rows)} claims: {told}."

    assert said == [left(verdict="wrong"), left(verdict="wrong", diagram="2"),
                    left(verdict="wrong", diagram="2", kind="cited"), left(diagram="2", kind="cited")]
    assert nothing == "0 No claim matches: show all" and '<button type="button">show all</button>' in dom
    assert '<form class="ledger-filter">' in dom


def test_every_fact_of_vllm_is_used_by_a_claim():
    witnesses = "".join(path.read_text() for path in Path(judge.__file__).parent.glob("*.py"))
    witnesses += Path(vllm_rules.__file__).read_text()
    said = witnesses + " ".join(claim.cell for claim in CLAIMS)
    assert [name for name in vllm_rules.rules()["facts"] if f'"{name}"' not in said and f"'{name}'" not in said] == []

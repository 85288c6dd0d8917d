"""The ledger: 61 claims, each judged by what its cell finds, each able to come out otherwise, and the pages agree."""
import ast
import json
import re
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import nbformat
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
CLAIMS = list(ledger().values())
each = pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: f"claim {c.id}")


@pytest.fixture(scope="module")
def ranks():
    with Ranks(2, device="cpu") as ranks:
        yield ranks


def run(claim, ranks):
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
def test_the_cell_comes_to_the_ledgers_verdict(claim, ranks):
    judgement = run(claim, ranks)
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


def changed(monkeypatch, number: int, ranks) -> str:
    """The verdict that a claim's cell comes to in a world that was changed."""
    try:
        return run(ledger()[number], ranks).verdict
    except ClaimError as e:
        return re.search(r"comes out (\w+)", str(e))[1]


def test_the_witnesses_see_a_changed_world(monkeypatch, ranks):
    """Not only the comparison can come out otherwise: what it compares is looked up, counted and measured."""
    def pretend(rows):
        for place in (judge, judge.model):
            monkeypatch.setattr(place, "rows", lambda *how: rows)

    drawn = judge.rows(plan="as-drawn")
    pretend(drawn)
    assert changed(monkeypatch, 28, ranks) == "right"
    pretend(drawn[:1])
    assert [changed(monkeypatch, n, ranks) for n in (35, 58, 61)] == ["wrong", "wrong", "wrong"]
    pretend(drawn[:3])
    assert changed(monkeypatch, 58, ranks) == "right"
    monkeypatch.undo()

    slow = [{**r, "us_median": r["bytes"]} for r in judge.recorded("collectives").rows]  # 2 us an element
    machine = type("Run", (), {"rows": slow, "label": "a slow machine"})
    monkeypatch.setattr(judge.runs, "recorded", lambda *which: machine)
    assert [changed(monkeypatch, n, ranks) for n in (57, 40)] == ["right", "right"]
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
    assert {n: changed(monkeypatch, n, ranks) for n in (7, 10, 42, 45, 48, 49)} == {
        7: "wrong", 10: "wrong", 42: "wrong", 45: "right", 48: "right", 49: "wrong"}


def shown_in(path: Path) -> dict[int, set[str]]:
    """{claim: verdicts} that a notebook's stored outputs hold."""
    found = {}
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", ()):
            html = "".join(output.get("data", {}).get("text/html", ""))
            for number, verdict in re.findall(r'data-claim="(\d+)" data-verdict="(\w+)"', html):
                found.setdefault(int(number), set()).add(verdict)
    return found


@pytest.mark.parametrize("chapter", sorted({claim.chapter for claim in CLAIMS}))
def test_the_chapter_judges_its_claims_as_the_ledger_says(chapter):
    path = BOOK / f"{chapter}.ipynb"
    if not re.search(r"\bclaim\(\d+", path.read_text()):
        pytest.skip("this chapter does not judge with claim() yet")
    shown = shown_in(path)
    assert shown == {c.id: {c.verdict} for c in CLAIMS if c.chapter == chapter or c.id in shown}


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

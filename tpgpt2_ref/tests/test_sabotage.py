"""The sabotage lab: every bug is found by instruments alone, no two look alike, and the healthy are not called sick."""
import itertools
import json
import pickle
from types import SimpleNamespace

import pytest

from tpgpt2_ref.course import sabotage
from tpgpt2_ref.course.exercises import progress
from tpgpt2_ref.course.sabotage import patient as patient_module
from tpgpt2_ref.course.sabotage.illnesses import BUGS, HEALTHY
from tpgpt2_ref.course.sabotage.patient import NAMES, POINTS, SIGNS
from tpgpt2_ref.course.sabotage.ward import admitted
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.notebook import Ranks
from tpgpt2_ref.tests.test_house import PACKAGE

WARD = "__import__('tpgpt2_ref.course.sabotage.ward', fromlist=['_'])"
BY_NAME = {bug.name: bug for bug in BUGS}


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("TPGPT2_PROGRESS", str(tmp_path / "progress.json"))


def seed_of(name: str) -> int:
    """The first patient with that bug."""
    return next(s for s in itertools.count() if (b := admitted(s).bug) is None and name == "healthy"
                or b and b.name == name)


def doctor(patient) -> str:
    """A diagnosis by someone who has read the chapter, from what the instruments show."""
    if patient.hang_report().rows:
        return "calls-in-another-order"
    first = next((row for row in patient.error_by_layer().rows if row["error"] > 1e-4), None)
    if first is None:
        return "healthy"
    calls = {row["op"]: row["calls"] for row in patient.collectives().rows}
    if first["place"] == "embedding":
        logits = patient.shapes().rows[-1]
        return "unpadded-vocabulary" if logits["rank 0"] == (2, 256) else "embedding-offset"
    if first["place"].endswith("MLP"):
        if calls["all_reduce"] != 7:
            return "sum-before-gelu" if calls["all_reduce"] > 7 else "mlp-sum-missing"
        return "stale-push" if max(row["difference"] for row in patient.repeat().rows) > 1e-4 else "shard-loaded-twice"
    if first["same for every token"]:
        return "bias-twice"
    if calls["all_gather"] > 1:
        return "gather-for-sum"
    here = [row for row in patient.cache().rows if row["layer"] == int(first["place"].split()[1])]
    return "foreign-kv" if max(row["from another rank's"] for row in here) < 1e-4 else "naive-qkv-half"


@pytest.mark.parametrize("name", NAMES)
def test_every_bug_is_found_by_instruments_alone(ranks, name):
    patient = sabotage.admit(seed_of(name), ranks)
    assert doctor(patient) == name
    left = patient.points
    assert POINTS - 5 <= left < POINTS
    verdict = patient.diagnose(name)
    assert verdict and f"{left} of {POINTS} points" in verdict.message
    assert progress.read()["lab"] == {str(patient.seed): {"points": left, "right": True}}


def test_no_two_bugs_have_the_same_signs():
    signs = [tuple({**HEALTHY, **bug.signs}.items()) for bug in BUGS] + [tuple(HEALTHY.items())]
    assert len(set(signs)) == len(signs) and len(BUGS) >= 10
    assert list(NAMES) == ["healthy", *BY_NAME] and sabotage.bugs() == NAMES
    for bug in BUGS:
        assert bug.signs.keys() <= HEALTHY.keys() and all(value in SIGNS[sign] for sign, value in bug.signs.items())


def test_every_bug_has_its_signs_in_every_layer(ranks):
    found = ranks.get(f"[(b.name, w.signs(w.examine(w.Case(b, layer, w.admitted(layer + i).prompts), world))) "
                      f"for w in [{WARD}] for i, b in enumerate(w.BUGS) for layer in range(3)]")
    assert found[0] == found[1] and len(found[0]) == 3 * len(BUGS)
    assert [(name, signs) for name, signs in found[0] if signs != {**HEALTHY, **BY_NAME[name].signs}] == []


@pytest.mark.gpus(2)
def test_every_bug_has_its_signs_on_gpus():
    with Ranks(2, device="cuda") as ranks:
        found = ranks.get(f"[(b.name, w.signs(w.examine(w.Case(b, 1, w.admitted(i).prompts), world))) "
                          f"for w in [{WARD}] for i, b in enumerate(w.BUGS)]")
        healthy = ranks.get(f"[w.signs(w.examine(w.Case(None, 0, w.admitted(s).prompts), world)) "
                            f"for w in [{WARD}] for s in range(9)]")
    assert [(name, signs) for name, signs in found[0] if signs != {**HEALTHY, **BY_NAME[name].signs}] == []
    assert found[0] == found[1] and healthy == [[HEALTHY] * 9] * 2


def test_the_healthy_are_never_called_sick(ranks):
    for first in range(0, 50, 10):
        found = ranks.get(f"[w.signs(w.examine(w.Case(None, 0, w.admitted(s).prompts), world)) "
                          f"for w in [{WARD}] for s in range({first}, {first} + 10)]")
        assert found[0] == found[1] == [HEALTHY] * 10


def test_a_wrong_diagnosis_hears_what_speaks_against_it(ranks):
    for name in ("mlp-sum-missing", "healthy", "calls-in-another-order"):
        patient = sabotage.admit(seed_of(name), ranks)
        said = {other: patient.diagnose(other) for other in NAMES if other != name}
        assert not any(said.values()) and patient.points == 0
        assert all(f"If it were {other}, you would see that" in v.message and "not so here" in v.message
                   for other, v in said.items())
        assert patient.diagnose(name) and patient.diagnose(name).message.endswith("0 of 10 points.")
    patient = sabotage.admit(seed_of("mlp-sum-missing"), ranks)
    said = patient.diagnose("healthy").message
    assert "That is not so here. 7 points left." in said
    assert "too few" not in said and "()" not in said  # what it is stays to be found


def test_a_patient_taken_in_again_keeps_its_first_score(ranks):
    seed, name = seed_of("stale-push"), "stale-push"
    first, again = sabotage.admit(seed, ranks), sabotage.admit(seed, ranks)
    assert first.repeat() and first.diagnose(name) and again.diagnose(name)
    assert progress.read()["lab"][str(seed)]["points"] == POINTS - 1


def test_a_reading_is_paid_once(ranks):
    patient = sabotage.admit(seed_of("stale-push"), ranks)
    patient.cache(), patient.cache(), patient.repeat()
    assert patient.points == POINTS - 2
    assert "<table>" in patient.cache()._repr_html_() and "8 points left" in repr(patient.cache())


@pytest.mark.parametrize("found, lies_on", [(("cuda", 2), "cuda"), (("cpu", 2), "cpu"), (("cuda", 4), "the lab's"),
                                            (None, "the lab's")])
def test_a_patient_lies_on_the_readers_own_two_ranks(ranks, monkeypatch, found, lies_on):
    """Whatever they run on; otherwise on two of the lab's."""
    def posing_as(name, size=2):
        return SimpleNamespace(name=name, size=size, device=name, get=ranks.get)

    monkeypatch.setattr(patient_module, "started_ranks", lambda: found and posing_as(*found))
    monkeypatch.setattr(patient_module, "own_ranks", lambda size: posing_as("the lab's", size))
    patient = sabotage.admit(8)
    assert patient.collectives().rows and patient._ranks.name == lies_on and patient._ranks.size == 2


def test_the_reader_holds_nothing_that_tells(ranks):
    """Neither what the patient is, nor what an instrument says, names a bug; the seed alone decides."""
    for name in BY_NAME:
        patient = sabotage.admit(seed_of(name), ranks)
        readings = [getattr(patient, i)() for i in ("hang_report", "error_by_layer", "cache", "bytes", "shapes")]
        held = {k: v for k, v in vars(patient).items() if k != "_ranks"}
        told = json.dumps(held, default=repr) + repr(patient) + "".join(map(repr, readings))
        assert name not in told and pickle.dumps([vars(r) for r in readings])
    names = [b.name if (b := admitted(s).bug) else None for s in range(600)]
    assert all(names.count(n) > 20 for n in {*BY_NAME, None})  # of 50 expected


def test_a_bug_links_to_a_chapter_that_exists():
    planned = {"why_split", "push", "hangs"}  # beside those on the table of contents
    pages = {p.stem for p in (PACKAGE.parent / "book").glob("*.ipynb")} | planned
    assert {bug.chapter for bug in BUGS} <= pages


def test_mistakes_of_the_user(ranks):
    assert not sabotage.admit(1, ranks).diagnose(...)  # as a chapter has it, for the reader to fill in
    with pytest.raises(UserError, match="a whole number"):
        sabotage.admit("seven")
    with pytest.raises(UserError, match="no bug 'flu'; .*bugs"):
        sabotage.admit(1, ranks).diagnose("flu")
    assert sabotage.admit(ranks=ranks).seed != sabotage.admit(ranks=ranks).seed

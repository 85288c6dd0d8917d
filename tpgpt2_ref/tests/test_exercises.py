"""Exercises: solutions pass, mistakes are named, cheats are rejected, and what never returns is ended."""
import inspect
import itertools
import json
import linecache
import textwrap
import time

import pytest

from tpgpt2_ref.cli import main
from tpgpt2_ref.course.exercises import progress
from tpgpt2_ref.course.exercises.catalogue import CATALOGUE, NEEDS, TITLES, find
from tpgpt2_ref.course.exercises.grader import check, own_ranks
from tpgpt2_ref.course.exercises.show import markdown, score, solution, start
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.parallel.launch import gpu_count
from tpgpt2_ref.tests.test_house import PACKAGE

ROOM = "tpgpt2_ref.course.exercises"
numbers = itertools.count()


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("TPGPT2_PROGRESS", str(tmp_path / "reader" / "progress.json"))


@pytest.fixture(scope="module", autouse=True)
def no_rank_is_left():
    yield
    if own_ranks.cache_info().currsize:
        own_ranks(3).close()
        own_ranks.cache_clear()


def define(text: str):
    """What the reader's cell defines: its last function, whose source can be read, as in a notebook."""
    text = textwrap.dedent(text)
    file = f"<cell {next(numbers)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names = {}
    exec("import torch\nimport math", names)
    exec(compile(text, file, "exec"), names)
    return list(names.values())[-1]


def answer_of(function, entry):
    """A task's own function, or the value that it stands for."""
    return function() if hasattr(entry.task, "value") else function


def test_there_is_an_exercise_for_every_chapter_that_teaches_one():
    assert len(CATALOGUE) >= 16 and len({e.name for e in CATALOGUE}) == len(CATALOGUE)
    assert {e.chapter for e in CATALOGUE} == {
        "quickstart", "why_split", "backend_selection", "qkv_split", "collectives", "push", "timeline",
        "decision_matrix", "links", "cost_analysis", "decode", "hangs"}
    assert {e.needs for e in CATALOGUE} <= NEEDS.keys()


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)
def test_the_solution_that_folds_out_is_right_and_the_starting_cell_waits(entry):
    waits = check(entry.name, define(start(entry)))
    assert not waits and "starting cell" in waits.message
    assert entry.name not in progress.read()["exercises"]  # no try yet
    verdict = check(entry.name, define(solution(entry)))
    assert verdict, verdict.message
    assert verdict.message.startswith(entry.task.RIGHT) and progress.solved(entry.name)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)
def test_typical_mistakes_are_named(entry):
    assert len(set(entry.task.MISTAKES.values())) >= 2
    for mistake, words in entry.task.MISTAKES.items():
        for _ in range(2 if entry.needs != "ranks" else 1):
            verdict = check(entry.name, answer_of(mistake, entry))
            said = words.split("{")[0]
            assert not verdict and verdict.message.startswith(said), (mistake.__name__, verdict.message)


@pytest.mark.parametrize("name, answer, words", [
    ("qkv-slice", "def f(w, r, n):\n    s = w.shape[1] // n\n    return w[:, r * s:(r + 1) * s]",
     "all of Q and half of K"),
    ("qkv-slice", "def f(w, r, n):\n    s = w.shape[1] // n\n    return w[r * s:(r + 1) * s]", "You cut rows, not col"),
    ("qkv-slice", "def f(w, r, n):\n    s = w.shape[0] // n\n    return w[r * s:(r + 1) * s]", "You cut rows, not col"),
    ("qkv-slice", "def f(w, r, n):\n    return w[:, : w.shape[1] // n]", "Rank 0 gets|all of Q|rank 0's columns"),
    ("busbw", "def f(op, b, us, n):\n    return b * 1e-9 / (us * 1e-6)", "algorithm bandwidth"),
    ("busbw", "def f(op, b, us, n):\n    return b / us", "times the right answer"),
    ("first-mismatch", "def f(a, b):\n    return [x == y for x, y in zip(a, b)].index(False)", "raises ValueError"),
    ("padded-rows", "def f(v, n):\n    return str(v)", "gives '257'"),
    ("padded-rows", "def f(v):\n    return v", "takes 1 argument"),
    ("padded-rows", "def f(v, n):\n    pass\n    return None", "returns None"),
    ("decode-attention", "def f(q, c, t, s):\n    return q", "input `q` unchanged"),
    ("decode-attention", "def f(q, c, t, s):\n    return 0 * q", "all zeros"),
    ("bias-once", "def f(x, w, b, r, s):\n    y = x @ w\n    y += b\n    return s(y)",
     "too large by 3 - 1 times the bias"),
    ("all-gather", "def f(x, r, n, e):\n    return helper(x)", "put imports and helpers inside"),
    ("ring-all-reduce", "def f(x, r, n, e):\n    return x", "input `x` unchanged|Rank 0"),
    ("kv-shards", "def f(q, k, v, g):\n    return torch.zeros_like(q)", "all zeros"),
])
def test_what_a_reader_is_told(name, answer, words):
    verdict = check(name, define(answer))
    assert not verdict and any(w in verdict.message for w in words.split("|")), verdict.message


OTHER_WAYS = {
    "bias-once": ["def f(x, w, b, r, s):\n    return s(x @ w) + b",
                  "def f(x, w, b, r, s):\n    return s(x @ w + b / 3)"],
    "vocab-lookup": ["def f(i, w, r, s):\n    t = torch.arange(len(w), device=i.device) + r * len(w)\n"
                     "    return s((i[:, None] == t).float() @ w)"],
    "ring-all-reduce": ["""
        def f(x, r, n, exchange):  # straight to the one who sums, and straight back
            mine = [c.clone() for c in x.chunk(n)]
            total = mine[r].clone()
            for s in range(1, n):
                total += exchange(mine[(r + s) % n], (r + s) % n, (r - s) % n)
            mine[r] = total
            for s in range(1, n):
                mine[(r - s) % n] = exchange(total, (r + s) % n, (r - s) % n)
            return torch.cat(mine)"""],
    "one-shot": ["def f(x, shared, r, b):\n    b()\n    shared[r].copy_(x)\n    b()\n"
                 "    return torch.stack(list(shared)).sum(0)"],
    "kv-shards": ["""
        def f(q, k, v, all_gather):
            s = torch.einsum("hd,thd->ht", q, k) / q.shape[-1] ** 0.5
            lse = all_gather(s.logsumexp(-1)).softmax(0)
            return (lse[..., None] * all_gather(torch.einsum("ht,thd->hd", s.softmax(-1), v))).sum(0)"""],
    "qkv-slice": ["def f(w, r, n):\n    return w.unflatten(1, (3, n, -1))[:, :, r].flatten(1)"],
    "break-even": ["def f(w, c):\n    return next((n for n in range(1, 10000) if n * (w / 2 + 2 * c) + 2 * c < n * w), "
                   "None)"],
    "alpha-beta": ["import numpy as np\ndef f(s, t):\n    slope, alpha = np.polyfit(s, t, 1, w=1 / np.array(t))\n"
                   "    return np.array([alpha])[0], 1e-3 / slope"],
    "padded-rows": ["import numpy as np\ndef f(v, n):\n    return np.int64(64 * n) * -(-v // (64 * n))"],
    "busbw": ["def f(op, b, us, n):\n    k = {'all_reduce': 2 * n - 2, 'broadcast': n}.get(op, n - 1)\n"
              "    return torch.tensor(k / n * b * 1e-9 / (us * 1e-6))"],
    "odd-heads": ["def f(h, r, n):\n    seen = math.ceil(h / n)\n"
                  "    return [seen, len(range(h)[r * seen:(r + 1) * seen])]"],
}


@pytest.mark.parametrize("name", OTHER_WAYS)
def test_other_right_ways_are_right(name):
    for answer in OTHER_WAYS[name]:
        verdict = check(name, define(answer))
        assert verdict, verdict.message


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)
def test_cheats_are_rejected(entry):
    """An answer that gives back its input, zeros, or what was right the first time."""
    if hasattr(entry.task, "value"):
        assert not check(entry.name, 0) and not check(entry.name, "")
        return
    names = list(inspect.signature(entry.task.start).parameters)
    arguments, zero = ", ".join(names), "0" if entry.needs == "nothing" else f"torch.zeros_like({names[0]})"
    assert not check(entry.name, define(f"def f({arguments}):\n    return {names[0]}"))
    assert not check(entry.name, define(f"def f({arguments}):\n    return {zero}"))
    text = textwrap.indent(inspect.getsource(entry.task.solution), "    ")
    assert not check(entry.name, define(
        f"def f({arguments}, seen=[]):\n    import torch\n{text}\n    if not seen:\n"
        f"        seen.append(solution({arguments}))\n    return seen[0]"))


def test_inputs_are_fresh_on_every_try():
    seen = []
    for _ in range(2):
        check("busbw", lambda op, nbytes, microseconds, n: seen.append(microseconds))
    assert len(set(seen)) == len(seen) == 8  # four operations, twice


def test_an_answer_that_never_returns_is_ended():
    begin = time.monotonic()
    verdict = check("padded-rows", define("def f(vocab, n):\n    while True:\n        try:\n            n += 1\n"
                                          "        except Exception:\n            pass"), deadline=0.5)
    assert not verdict and "did not return within 0.5 s" in verdict.message and time.monotonic() - begin < 3


@pytest.mark.parametrize("body", ["while True:\n        pass", "return exchange(x, rank - 1, rank - 1) if rank else x"],
                         ids=["a loop", "a rank that waits for nobody"])
def test_ranks_are_fresh_after_an_answer_that_never_returns(body):
    begin = time.monotonic()
    verdict = check("all-gather", define(f"def f(x, rank, n, exchange):\n    {body}"), deadline=2)
    assert not verdict and "did not return within 2 s" in verdict.message
    assert time.monotonic() - begin < 25
    assert check("all-gather", find("all-gather").task.solution)


def test_an_unknown_name_is_a_users_mistake():
    with pytest.raises(UserError, match="no exercise 'qkv'; there are: padded-rows"):
        check("qkv", None)


def test_progress_survives_a_broken_file_and_a_folder_that_is_none(monkeypatch, tmp_path):
    progress.attempt("busbw", False), progress.attempt("busbw", True), progress.attempt("busbw", False)
    assert progress.read()["exercises"]["busbw"] == {"tries": 3, "right": True}
    progress.progress_file().write_text('{"exercises": [1], "lab": {"1": 2}')
    assert progress.read() == {"exercises": {}, "lab": {}} and progress.tries("busbw") == 0
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TPGPT2_PROGRESS", str(tmp_path / "file" / "progress.json"))
    assert check("padded-rows", find("padded-rows").task.solution)


def test_a_page_shows_the_task_with_everything_folded():
    for entry in CATALOGUE:
        text = markdown(entry)
        assert text.count("<details>") == text.count("</details>") == len(entry.task.HINTS) + 1
        assert entry.function in start(entry) and entry.function in solution(entry)
    assert repr(check("padded-rows", ...)).startswith("○ Not yet.")
    assert "&lt;" in check("padded-rows", define("def f(v, n):\n    return '<b>'"))._repr_html_()


def test_the_score_names_chapters_by_their_titles():
    for stem in {entry.chapter for entry in CATALOGUE}:
        page = json.loads((PACKAGE.parent / "book" / f"{stem}.ipynb").read_text())
        assert page["cells"][0]["source"][0].strip("# \n") == TITLES[stem]
        assert f'<a href="{stem}.ipynb">{TITLES[stem]}</a>' in score()._repr_html_()


def test_the_score_is_the_readers_own():
    assert repr(score()).endswith("0 of 20 exercises solved. 0 patients diagnosed, 0 points.")
    check("busbw", lambda a: a), check("busbw", lambda a: a), check("padded-rows", find("padded-rows").task.solution)
    progress.note("lab", "7", {"points": 6, "right": True}), progress.note("lab", "8", "broken")
    assert "busbw (2 tries)" in repr(score()) and "<td>padded-rows ✓</td>" in score()._repr_html_()
    assert repr(score()).endswith("1 of 20 exercises solved. 1 patient diagnosed, 6 points.")


def test_a_notebook_checks_on_its_own_ranks_and_keeps_them(tmp_path):
    """Functions of cells go to the ranks by their source; `%%ranks` stays with the reader's; nothing raises."""
    import nbformat
    from nbclient import NotebookClient

    entry = find("ring-all-reduce")
    right, wrong = solution(entry), inspect.getsource(entry.task.one_step).replace("one_step", "ring_all_reduce")
    cells = ["from tpgpt2_ref.course import check, exercise\nfrom tpgpt2_ref.notebook import Ranks\nranks = Ranks(2)",
             "exercise('ring-all-reduce')", start(entry), "check('ring-all-reduce', ring_all_reduce)",
             wrong, "check('ring-all-reduce', ring_all_reduce)", right, "check('ring-all-reduce', ring_all_reduce)",
             "%%ranks\nprint(world.size)"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(book, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [cell.outputs[0].data["text/plain"] for cell in book.cells if cell.source.startswith("check")]
    assert said[0].startswith("○ Not yet. The starting cell")
    assert "left neighbour's x only" in said[1]  # right for two ranks: the grader's own three find it
    assert said[2].startswith("✓ Right. 2 (n - 1) messages")
    assert "<details>" in book.cells[1].outputs[0].data["text/markdown"]
    assert book.cells[-1].outputs[0].text.splitlines() == ["rank 0 │ 2", "rank 1 │ 2"]


def test_the_command_lists_and_runs_them(capfd):
    assert main(["exercises", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)["exercises"]
    assert [set(row) for row in listed] == [{"name", "chapter", "needs", "title"}] * len(CATALOGUE)
    assert main(["exercises", "--run-solutions", "--json"]) == 0
    assert all(row["right"] for row in json.loads(capfd.readouterr().out)["exercises"])
    assert progress.read() == {"exercises": {}, "lab": {}}  # the reader's file is hers


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["decode-attention"])
def test_a_right_kernel_is_timed_beside_the_speed_of_light(name):
    assert "at the speed of a large copy" in check(name, find(name).task.solution).message


@pytest.mark.gpus(2)
def test_a_right_sum_is_timed_on_two_gpus():
    from tpgpt2_ref.notebook import Ranks

    assert gpu_count() >= 2
    with Ranks(2, device="cuda") as ranks:
        for name in ("one-shot", "ring-all-reduce", "all-gather", "kv-shards", "vocab-lookup", "bias-once"):
            verdict = check(name, find(name).task.solution, ranks=ranks)
            assert verdict, (name, verdict.message)
            assert name != "one-shot" or "On these GPUs: 1,536 B" in verdict.message

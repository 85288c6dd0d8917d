"""The house rules that a test can hold: who may import whom, what is read where, and that every box is code."""
from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tpgpt2_ref.pictures import diagrams

PACKAGE = Path(diagrams.__file__).parents[1]
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "tests" not in p.parts)


@pytest.mark.parametrize("diagram", diagrams.DIAGRAMS)
def test_every_box_is_code(diagram):
    for box, target in diagrams.DIAGRAMS[diagram].items():
        assert diagrams.resolve(target) is not None, box
        file, line = diagrams.where(target)
        assert file.is_file() and line >= 1


def imports(file: Path) -> set[str]:
    """Absolute names of the modules that a file imports, anywhere in it."""
    package = ("tpgpt2_ref", *file.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found |= {module, *(f"{module}.{a.name}" for a in node.names)}
    return found


def test_attention_has_no_collective():
    for file in (PACKAGE / "attention").rglob("*.py"):
        assert not [m for m in imports(file) if m.startswith(("tpgpt2_ref.parallel", "torch.distributed"))], file


def test_torch_distributed_stays_behind_its_door():
    for file in FILES:
        if "parallel" not in file.relative_to(PACKAGE).parts:
            assert not [m for m in imports(file) if m.startswith("torch.distributed")], file


ORDER = [{"errors", "config", "trace", "noise", "request", "files"}, {"parallel", "attention", "kernels"}, {"gpt2"},
         {"weights", "tokenizer", "checkpoints", "engine"}, {"recorded", "cost"}, {"bench"},
         {"notebook", "pictures", "figures", "explorers"}, {"course"},
         {"commands", "cli"}]


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.fixture(scope="module")
def doors() -> dict[str, dict[str, Path]]:
    """{room: {room that it imports: a file that does}}."""
    rooms = {room(file) for file in FILES} - {"__init__", "__main__"}
    found = {name: {} for name in rooms}
    for file in FILES:
        for module in imports(file) if room(file) in rooms else ():
            parts = module.split(".")
            if parts[0] == "tpgpt2_ref" and len(parts) > 1 and parts[1] in rooms - {room(file)}:
                found[room(file)].setdefault(parts[1], file)
    return found


def test_nobody_imports_upward(doors):
    level = {name: i for i, names in enumerate(ORDER) for name in names}
    assert doors.keys() <= level.keys(), "a room that stands on no floor"
    up = {f"{file.relative_to(PACKAGE)} imports {other}" for name, others in doors.items()
          for other, file in others.items() if level[other] > level[name]}
    assert not up


def test_no_circle_of_rooms(doors):
    order = TopologicalSorter({name: set(others) for name, others in doors.items()})
    try:
        order.prepare()
    except CycleError as e:
        pytest.fail(" imports ".join(reversed(e.args[1])))


def test_no_room_is_above_a_fifth_of_the_code():
    lines = Counter()
    for file in FILES:
        lines[room(file)] += len(file.read_text().splitlines())
    (name, most), = lines.most_common(1)
    assert most <= lines.total() / 5, f"{name} has {most} lines of {lines.total()}"


def test_contributing_lists_every_floor():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    drawn = text.partition("list of floors, never up")[2].split("\n\n")[0]
    floors = [set(re.findall(r"\w+", floor)) for floor in drawn.partition("\n")[2].split("←")]
    assert floors == ORDER


WITHOUT_TORCH = ("config", "errors", "request", "trace", "attention.platform", "attention.matrix", "attention.selector",
                 "cost.collectives", "cost.forward", "recorded.machine", "recorded.nvml", "recorded.results",
                 "recorded.samples", "bench.dial", "parallel.launch", "parallel.board", "parallel.all_reduce",
                 "parallel.all_reduce.push_model", "attention.vllm_rules", "pictures.diagrams", "course.claims",
                 "course.judge", "course.exercises", "commands.arguments", "commands.bench", "cli")


def test_imports_without_torch():
    """One after the other in one process: the first that brings torch in is named."""
    code = f"""import importlib, sys
for name in {WITHOUT_TORCH}:
    importlib.import_module("tpgpt2_ref." + name)
    assert "torch" not in sys.modules, name"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_file_opens_with_what_it_is():
    for file in FILES:
        if file.name != "__main__.py":
            assert ast.get_docstring(ast.parse(file.read_text())) or not file.read_text().strip(), file


def test_files_can_be_read_in_one_sitting():
    long = {str(f.relative_to(PACKAGE)): n for f in FILES if (n := len(f.read_text().splitlines())) > 300}
    assert not long


def test_the_environment_is_read_in_one_place_for_each_variable():
    """A variable of ours, or vLLM's, is named in one file."""
    for name in ("VLLM_ATTENTION_BACKEND", "TPGPT2_SHARE_GPU", "TPGPT2_PROGRESS"):
        readers = [f for f in FILES if any(f'environ{how}"{name}"' in f.read_text() for how in (".get(", "["))]
        assert len(readers) == 1, (name, readers)

"""The house rules that a test can hold: who may import whom, what is read where, and that every box is code."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tpgpt2_ref.course import diagrams

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


ORDER = [{"errors", "config", "trace", "noise", "request"}, {"parallel", "attention", "kernels"}, {"gpt2"},
         {"weights", "tokenizer", "checkpoints", "engine"}, {"recorded", "cost"}, {"bench"}, {"notebook", "course"},
         {"commands", "cli"}]


def test_nobody_imports_upward():
    level = {name: i for i, names in enumerate(ORDER) for name in names}
    for file in FILES:
        here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if here in ("__init__", "__main__"):
            continue
        for module in imports(file):
            parts = module.split(".")
            if parts[0] == "tpgpt2_ref" and len(parts) > 1 and parts[1] in level:
                assert level[parts[1]] <= level[here], f"{file} imports {module}"


@pytest.mark.parametrize("module", ["config", "errors", "request", "trace", "attention.platform", "attention.matrix",
                                    "attention.selector", "cost.collectives", "cost.forward", "bench.dial",
                                    "recorded.results", "parallel.launch", "parallel.all_reduce", "course.diagrams",
                                    "commands.arguments", "cli"])
def test_imports_without_torch(module):
    done = subprocess.run([sys.executable, "-c", f"import tpgpt2_ref.{module}, sys; assert 'torch' not in sys.modules"],
                          cwd=PACKAGE.parent, capture_output=True, text=True)
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
    for name in ("VLLM_ATTENTION_BACKEND", "TPGPT2_SHARE_GPU"):
        readers = [f for f in FILES if any(f'environ{how}"{name}"' in f.read_text() for how in (".get(", "["))]
        assert len(readers) == 1, (name, readers)

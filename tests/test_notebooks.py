"""Every chapter runs from top to bottom on this machine. Its cells assert what its text says."""
import pytest

from .execute_notebooks import CHAPTERS, execute

QUICK = {"quickstart", "qkv_split"}  # the others run with -m slow, and in CI


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else pytest.mark.slow)
                                  for p in CHAPTERS])
def test_a_chapter_runs(path):
    book = execute(path)
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")

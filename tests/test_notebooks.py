"""Every chapter runs from top to bottom on this machine. Its cells assert what its text says."""
import pytest

from .execute_notebooks import CHAPTERS, execute


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs(path):
    book = execute(path)
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")

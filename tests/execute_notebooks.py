"""Run chapters from top to bottom and store their outputs in place.

    python tests/execute_notebooks.py                         all chapters
    python tests/execute_notebooks.py book/quickstart.ipynb   some
    python tests/execute_notebooks.py --out FOLDER ...        leave the chapters alone, write copies there
    python tests/execute_notebooks.py --jobs 2                two at a time

A chapter that raises is left as it was; the others still run. Exit status 1 if any raised.
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))


def execute(path: Path, timeout: float = 600) -> nbformat.NotebookNode:
    """The notebook with fresh outputs, run in book/ with this repository's package. Raises CellExecutionError."""
    book = nbformat.read(path, as_version=4)
    path_before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), path_before]))
    try:
        NotebookClient(book, timeout=timeout, kernel_name="python3", store_widget_state=False,
                       resources={"metadata": {"path": str(ROOT / "book")}}).execute()
    finally:
        if path_before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path_before
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # time stamps: noise in a diff
        for output in cell.get("outputs", ()):  # a widget needs this kernel: its HTML is what stays
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    book.metadata.pop("language_info", None)
    return book


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--out", type=Path, help="write there instead of in place")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at a time (default: 1)")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    paths = args.notebooks or CHAPTERS
    with ProcessPoolExecutor(max(1, args.jobs)) as pool:
        failures = list(pool.map(store, paths, [(args.out / path.name) if args.out else path for path in paths]))
    return int(any(failures))


def store(path: Path, target: Path) -> bool:
    """Run one chapter and write it there; True if it failed."""
    begin = time.monotonic()
    try:
        book = execute(path)
    except CellExecutionError as e:
        print(f"{path.name}: failed after {time.monotonic() - begin:.0f} s\n{e}", file=sys.stderr, flush=True)
        return True
    nbformat.write(book, target)
    print(f"{path.name}: {time.monotonic() - begin:.0f} s", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())

"""How pytest-xdist shares tests out: by default among this machine's cores, and a file of the package's stays together.

Files share what is slow to start: ranks, a page, Hugging Face's models. Both conftests import these hooks.
"""
from __future__ import annotations

import os

import pytest

from tpgpt2_ref.parallel.launch import gpu_count

TOGETHER = ("tpgpt2_ref/", "tests/test_pages.py")  # of the book's own, only the pages share something: one build


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int:
    """Processes of `-n auto`, as pyproject.toml has it: none but this one for single files, and where there are GPUs:
    tests time them."""
    shared_already = "PYTEST_XDIST_WORKER" in os.environ or config.getoption("--share", None)
    if shared_already or gpu_count() or all(".py" in argument for argument in config.args):
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """In the order given, so that what takes longest can begin first. (`--dist loadgroup` marks tests in a place from
    which pytest 9.1 no longer reads.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return file if file.startswith(TOGETHER) else nodeid

    config.option.loadscopereorder = False
    return ByFile(config, log)

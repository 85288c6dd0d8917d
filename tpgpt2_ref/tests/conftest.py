"""Shared by the package's tests: checkpoints that Hugging Face wrote, groups of gloo ranks, GPU markers."""
from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

from tpgpt2_ref.errors import RankError, UserError
from tpgpt2_ref.parallel.launch import gpu_count
from tpgpt2_ref.parallel.private import PrivateFolder
from tpgpt2_ref.parallel.torchrun import rank_env
from tpgpt2_ref.tests.workers import pytest_xdist_auto_num_workers, pytest_xdist_make_scheduler  # noqa: F401

ROOT = Path(__file__).parents[2]


def pytest_addoption(parser):
    parser.addoption("--share", type=Path, metavar="FOLDER", help="of the selected tests, run those that no other "
                     "process with this folder has begun: however many you start, they share them out")
    parser.addoption("--needs", type=int, metavar="N", help="of the selected tests, those that need N GPUs, no fewer "
                     "and no more")


def gpus_of(item) -> int:
    return next((m.args[0] for m in item.iter_markers("gpus")), 1 if item.get_closest_marker("gpu") else 0)


def pytest_configure(config):
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # ranks and workers share the cores
    config.addinivalue_line("markers", "gpu: needs a GPU")
    config.addinivalue_line("markers", "gpus(n): needs n GPUs")
    config.addinivalue_line("markers", "slow: minutes long; run with -m slow")
    config.addinivalue_line("markers", "alone: times a GPU, or has two ranks share one: nothing else may run there")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    if (wanted := config.getoption("--needs", None)) is not None:
        config.hook.pytest_deselected(items=[item for item in items if gpus_of(item) != wanted])
        items[:] = [item for item in items if gpus_of(item) == wanted]
    have, wanted = gpu_count(), "slow" in (config.option.markexpr or "")
    for item in items:
        if (need := gpus_of(item)) > have:
            item.add_marker(pytest.mark.skip(reason=f"needs {need} GPU(s), this machine has {have}"))
        if item.get_closest_marker("slow") and not wanted:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """With --share: run the next test that nobody has begun, until none is left. It is claimed one ahead, since a test
    is told which one follows: what both need stays."""
    folder = session.config.getoption("--share", None)
    if folder is None or session.config.option.collectonly or session.testsfailed:
        return None  # pytest's own loop

    def is_free(item) -> bool:
        try:
            (folder / hashlib.sha256(item.nodeid.encode()).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    folder.mkdir(parents=True, exist_ok=True)
    free = filter(is_free, session.items)
    item = next(free, None)
    while item is not None and not (session.shouldstop or session.shouldfail):
        following = next(free, None)
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        item = following
    return True


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint(n_layer=..., ...) -> (folder that Hugging Face saved, its model in eval mode). Cached by shape."""
    made = {}

    def make(device: str = "cpu", **shape):
        key = (device, *sorted(shape.items()))
        if key not in made:
            import torch
            from transformers import GPT2Config, GPT2LMHeadModel

            torch.manual_seed(0)
            with torch.device(device):
                model = GPT2LMHeadModel(GPT2Config(attn_implementation="eager", **shape)).eval()
            with torch.no_grad():  # biases start at zero and norms at one: move them, or a lost bias goes unseen
                for p in model.parameters():
                    p.add_(torch.randn_like(p), alpha=0.02)
            folder = tmp_path_factory.mktemp("checkpoint")
            model.save_pretrained(folder)
            made[key] = folder, model
        return made[key]

    return make


@pytest.fixture(scope="session")
def ranks():
    """Two live ranks on the CPU. A test may kill them: the next cell gets fresh ones."""
    from tpgpt2_ref.notebook import Ranks

    with Ranks(2, device="cpu") as ranks:
        yield ranks


def run_cli(*argv, env=None, timeout=120, fresh=False) -> subprocess.CompletedProcess:
    """`python -m tpgpt2_ref ARGV`, as a user runs it: (status, stdout, stderr).

    Most of a short command's time goes into importing torch. Where no GPU is asked for, the command runs in this
    process, its ranks are forked from one that has torch, and what it leaves in `os.environ` is taken back.
    fresh  a process of its own nevertheless; so it is with variables to set
    """
    argv = [str(a) for a in argv]
    if fresh or env or not ("cpu" in argv or gpu_count() == 0):
        return subprocess.run([sys.executable, "-m", "tpgpt2_ref", *argv], capture_output=True, text=True, cwd=ROOT,
                              timeout=timeout, env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})})

    def launch(argv, size, **_):
        ranks = on_ranks(size, in_this_process, argv, device=None, timeout=timeout)
        for stream, text in zip((sys.stdout, sys.stderr), ranks[0][1:]):
            stream.write(text)
        if failed := [r for r, (status, *_) in enumerate(ranks) if status]:
            status, _, said = ranks[failed[0]]
            raise UserError("") if status == 2 else RankError(f"rank {failed[0]} failed with status {status}: {said}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tpgpt2_ref.cli.launch", launch)
        return subprocess.CompletedProcess(argv, *in_this_process(argv))


def in_this_process(argv: list[str]) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the command line, whether it writes to Python's streams or to the files."""
    from tpgpt2_ref.cli import main

    before, place, streams = dict(os.environ), Path.cwd(), (sys.stdout, sys.stderr)
    saved, files = [os.dup(1), os.dup(2)], [tempfile.TemporaryFile("w+") for _ in range(2)]
    for stream in streams:
        stream.flush()
    try:
        for fd, file in enumerate(files, 1):
            os.dup2(file.fileno(), fd)
        sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False, buffering=1) for fd in (1, 2))
        os.chdir(ROOT)
        try:
            status = main(argv)
        except SystemExit as e:  # argparse
            status = e.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = streams
        for fd, copy in enumerate(saved, 1):
            os.dup2(copy, fd)
            os.close(copy)
        os.chdir(place)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
    for file in files:
        file.seek(0)
    return status, *(file.read() for file in files)


def cli_json(*argv, **kwargs) -> dict:
    done = run_cli(*argv, "--json", **kwargs)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def on_ranks(size: int, function, *args, device: str | None = "cpu", env=None, timeout: float = 60) -> list:
    """Call `function(world, *args)` on `size` fresh ranks; its results by rank. For functions of test modules.

    device  None: the ranks know of each other, but no world is joined, and the function gets its arguments alone
    """
    fork = multiprocessing.get_context("forkserver")  # its server imports torch once, not every rank
    fork.set_forkserver_preload(["torch", "tpgpt2_ref.parallel.world", "tpgpt2_ref.engine", "tpgpt2_ref.weights"])
    folder, ranks, answers = PrivateFolder(), [], []
    for rank in range(size):
        here, there = fork.Pipe(duplex=False)
        ranks.append(fork.Process(target=_rank_main, daemon=True, args=(
            there, {**rank_env(rank, size, folder.path), **(env or {})}, function, args, device)))
        ranks[-1].start()
        there.close()
        answers.append(here)
    got, end = [("it said nothing within the time", None)] * size, time.monotonic() + timeout
    try:
        for rank, answer in enumerate(answers):
            if answer.poll(max(0.0, end - time.monotonic())):
                got[rank] = answer.recv()
    except EOFError:
        got[rank] = ("it died", None)
    finally:
        for p in ranks:
            p.join(timeout=0 if any(error for error, _ in got) else 10)
            p.kill()
        folder.remove()
    failed = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(got) if error]
    assert not failed, "\n".join(failed)
    return [result for _, result in got]


def _rank_main(answer, env, function, args, device):
    import torch

    from tpgpt2_ref.parallel.world import World

    os.environ.update(env)
    torch.set_num_threads(1)
    try:
        if device is None:
            result = function(*args)
        else:
            with World.join(device, timeout=60) as world:
                result = function(world, *args)
        answer.send_bytes(pickle.dumps((None, result)))
    except BaseException:
        answer.send((traceback.format_exc(), None))

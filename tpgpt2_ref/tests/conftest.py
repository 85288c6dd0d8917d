"""Shared by the package's tests: checkpoints that Hugging Face wrote, groups of gloo ranks, GPU markers."""
from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tpgpt2_ref.parallel.launch import free_port, gpu_count, rank_env

ROOT = Path(__file__).parents[2]


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a GPU")
    config.addinivalue_line("markers", "gpus(n): needs n GPUs")
    config.addinivalue_line("markers", "slow: minutes long; run with -m slow")


def pytest_collection_modifyitems(config, items):
    have, wanted = gpu_count(), "slow" in (config.option.markexpr or "")
    for item in items:
        need = next((m.args[0] for m in item.iter_markers("gpus")), 1 if item.get_closest_marker("gpu") else 0)
        if need > have:
            item.add_marker(pytest.mark.skip(reason=f"needs {need} GPU(s), this machine has {have}"))
        if item.get_closest_marker("slow") and not wanted:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


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


def run_cli(*argv, env=None, timeout=120) -> subprocess.CompletedProcess:
    """`python -m tpgpt2_ref ARGV`, as a user runs it."""
    return subprocess.run([sys.executable, "-m", "tpgpt2_ref", *map(str, argv)], capture_output=True, text=True,
                          cwd=ROOT, timeout=timeout, env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})})


def cli_json(*argv, **kwargs) -> dict:
    done = run_cli(*argv, "--json", **kwargs)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def on_ranks(size: int, function, *args, device: str = "cpu", env=None, timeout: float = 60) -> list:
    """Call `function(world, *args)` on `size` fresh ranks; its results by rank. For functions of test modules."""
    port, ranks = free_port(), []
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder, "job.pkl")
        job.write_bytes(pickle.dumps((function, args, device)))
        for rank in range(size):
            ranks.append(subprocess.Popen(
                [sys.executable, __file__, str(job), str(Path(folder, f"{rank}.pkl"))], stderr=subprocess.PIPE,
                env={**os.environ, **rank_env(rank, size, port), "OMP_NUM_THREADS": "1",
                     "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **(env or {})}))
        try:
            errors = [p.communicate(timeout=timeout)[1].decode() for p in ranks]
        finally:
            for p in ranks:
                p.kill()
        failed = [f"rank {r}:\n{e}" for r, (p, e) in enumerate(zip(ranks, errors)) if p.returncode]
        assert not failed, "\n".join(failed)
        return [pickle.loads(Path(folder, f"{rank}.pkl").read_bytes()) for rank in range(size)]


def _rank_main(job: str, out: str):
    from tpgpt2_ref.parallel.world import World

    function, args, device = pickle.loads(Path(job).read_bytes())
    with World.join(device, timeout=60) as world:
        Path(out).write_bytes(pickle.dumps(function(world, *args)))


if __name__ == "__main__":
    _rank_main(*sys.argv[1:])

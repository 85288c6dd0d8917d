"""Faults of the command line: an environment that can't be, malformed checkpoints."""
from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .ends import GENERATE
from .kind import ROOT, Kind


# What the environment may hold when a command starts
def command(env: dict[str, str], *argv: str, twice: bool = False):
    """One line on stderr and status 1 or 2, or success; None if so, otherwise what came."""
    def run(stage) -> str | None:
        program = [sys.executable, "-m", "tpgpt2_ref", "generate", "--model", "tiny", "--device", "cpu", "--prompt-ids",
                   "1,2,3", "--max-new-tokens", "2", *argv]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MASTER_", "RANK", "WORLD_SIZE"))}
        runs = [subprocess.Popen(program, cwd=ROOT, env={**clean, **env}, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True) for _ in range(1 + twice)]
        try:
            ended = [(p.communicate(timeout=60)[1], p.returncode) for p in runs]
        except subprocess.TimeoutExpired:
            return "hangs"
        finally:
            for p in runs:
                p.kill()
        bad = [err for err, status in ended if "Traceback" in err or status not in (0, 1, 2)
               or status and not err.strip().splitlines()[-1].startswith("error: ")]
        return bad[0] if bad else None
    return run


def two_groups_on_one_port(stage) -> str | None:
    """Four processes by hand, two of each rank: two run, two say in one line why they don't, within 10 s."""
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 9999)}
    ranks = [subprocess.Popen([*GENERATE[:-1], "2", "--device", "cpu"], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.PIPE, env={**env, "RANK": str(i % 2)}) for i in range(4)]
    try:
        deadline = time.monotonic() + 10
        while sum(p.poll() == 2 for p in ranks) < 2:
            if time.monotonic() > deadline:
                return "not refused within 10 s"
            time.sleep(0.05)
        said = [p.communicate(timeout=60)[1].strip() for p in ranks]
    except subprocess.TimeoutExpired:
        return "hangs"
    finally:
        for p in ranks:
            p.kill()
    refused = [text for p, text in zip(ranks, said) if p.returncode == 2]
    if sorted(p.returncode for p in ranks) != [0, 0, 2, 2] or not all(
            text.startswith("error: ") and "MASTER_PORT" in text and "\n" not in text for text in refused):
        return f"{[p.returncode for p in ranks]}: {said}"
    return None


COMMANDS = [Kind(name, "command", command(*what, twice=name.startswith("twice")), devices=("cpu",)) for name, what in {
    "RANK=5 of 2": ({"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29871"},),
    "RANK without MASTER_ADDR": ({"RANK": "0", "WORLD_SIZE": "2"},),
    "RANK=x": ({"RANK": "x", "WORLD_SIZE": "2"},),
    "MASTER_ADDR is no host": ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "no.such.host.invalid",
                                "MASTER_PORT": "29872"},),
    "MASTER_PORT=99999": ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"},),
    "twice the same MASTER_PORT at once": ({"MASTER_PORT": "29873"}, "--tp", "2"),
    "MASTER_ADDR is no host, own ranks": ({"MASTER_ADDR": "no.such.host.invalid"}, "--tp", "2"),
}.items()]
COMMANDS.append(Kind("two groups on one MASTER_PORT", "command", two_groups_on_one_port, devices=("cpu",)))


def malformed(stage) -> str | None:
    """One seeded malformed input of the command line in this process: None, or the traceback or hang that came."""
    rng, place = stage.random, Path(stage.place) / "malformed"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ROOT / "tpgpt2_ref/checkpoints/tiny", place)
    victim = rng.choice([p for p in place.iterdir() if p.is_file()])
    _spoil(victim, rng)
    argv = rng.choice([["generate", "--prompt", "Return", "--max-new-tokens", "2"],
                       ["logits", "--prompt-ids", "1,2", "--out", str(place / "o.npy")]])
    begin = time.monotonic()
    try:
        status, out, err = stage.in_this_process([*argv, "--model", str(place), "--device", "cpu"])
    except Exception as e:
        return f"{victim.name}: {type(e).__name__}: {e}"
    if time.monotonic() - begin > 10:
        return f"{victim.name}: {time.monotonic() - begin:.0f} s"
    half = [p.name for p in place.glob("o*") if status]
    if status not in (0, 2) or "Traceback" in err or half or status == 2 and err.count("\n") != 1:
        return f"{victim.name}: status {status}, left {half}: {err[-300:]}"
    return None


def _spoil(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    how = rng.choice(["cut", "flip", "junk", "json"])
    if how == "json" and path.suffix == ".json":
        document = json.loads(data)
        keys = list(document)
        for _ in range(rng.randint(1, 3)):
            document[rng.choice(keys)] = rng.choice([None, -1, 0, 1.5, "x", [], {}, True, 2**70, float("nan"), [1],
                                                     "\ud800"])
        path.write_text(json.dumps(document))
    elif how == "cut":
        path.write_bytes(data[:rng.randrange(len(data))])
    elif how == "junk":
        path.write_bytes(rng.choice([b"", b"{", b"[]", b"null", b"[" * 100000, b"\xff\xfe\x00", b"3", b'"x"']))
    else:
        at = [rng.randrange(min(len(data), 4096)) for _ in range(3)]
        path.write_bytes(bytes(b ^ rng.randrange(1, 256) if i in at else b for i, b in enumerate(data)))


MALFORMED = [Kind("malformed checkpoint", "malformed", malformed, devices=("cpu",))]

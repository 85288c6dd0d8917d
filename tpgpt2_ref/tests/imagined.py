"""An imagined machine's collectives and decode steps, whose truth is known, and what a command says of it."""
from __future__ import annotations

import json
import random

from tpgpt2_ref.cli import main
from tpgpt2_ref.config import FAMILY
from tpgpt2_ref.cost import forward as cost_forward
from tpgpt2_ref.recorded.samples import bandwidth

SIZES = [2**i for i in range(8, 31)]


def truth(nbytes):
    """A library with two protocols: 10 us and 2 GB/s, from 64 KiB 35 us and 300 GB/s."""
    return 10 + nbytes / 2e3 if nbytes < 65536 else 35 + nbytes / 300e3


def curve(us, op="all_reduce", path="nccl", world=2, graph=False, noise=0.0, sizes=SIZES):
    dice = random.Random(1)
    rows = []
    for n in sizes:
        t = us(n) * (1 + dice.uniform(-noise, noise))
        rows.append({"op": op, "path": path, "world": world, "bytes": n, "dtype": "bfloat16", "graph": graph,
                     "us_median": t, "us_p10": t, "us_p90": t, **bandwidth(op, n, t, world)})
    return rows


def steps(model, noise=0.03):
    """Decode rows of an imagined machine that follows the model's form: 4 TB/s, 3 us a layer."""
    dice, rows = random.Random(2), []
    for name in ("gpt2", "gpt2-medium", "gpt2-xl"):
        for tp in (1, 2):
            for batch in (1, 8, 64):
                for prompt in (128, 512):
                    config = FAMILY[name]
                    _, layers, weights, *cache, flops = cost_forward.work(config, tp, batch, 1, prompt + 64)
                    cache = sum(cache)
                    calls = cost_forward.collectives(config, tp, batch, 1)
                    comm, _ = cost_forward.communication_us(model, calls, tp, "nccl", True)
                    us = 20 + 3 * layers + (weights + cache) / 4e6 + flops / 4e8 + comm
                    us *= 1 + dice.uniform(-noise, noise)
                    rows.append({"engine": "tpgpt2", "model": f"random:{name}", "dtype": "bfloat16", "tp": tp,
                                 "sum": "nccl" if tp > 1 else "none", "rung": "graph", "batch": batch,
                                 "prompt_len": prompt, "us_per_step_median": us, "us_per_step_p10": us,
                                 "us_per_step_p90": us})
    return rows




def ask(capsys, *argv):
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)

"""Where the seconds of a start go: with TPGPT2_TIMES=FILE every process of a run adds a line to FILE at each step.

    1834.120  rank 1, process 4711  CUDA context        the clock of this host, the same in all processes

    TPGPT2_TIMES=times.txt python -m tpgpt2_ref generate --tp 2 ...; sort times.txt
"""
from __future__ import annotations

import os
import time


def mark(step: str) -> None:
    """Note that this process has come so far; without TPGPT2_TIMES nothing."""
    if file := os.environ.get("TPGPT2_TIMES"):
        who = f"rank {os.environ['RANK']}, " if "RANK" in os.environ else ""
        with open(file, "a") as times:  # one short write: lines of several processes don't mix
            times.write(f"{time.monotonic():.3f}  {who}process {os.getpid()}  {step}\n")

"""A kind of fault, and how one is made on ranks and listened to."""
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAD = """import os, signal, sys, threading, time
import torch.distributed as dist
here = world.device
from tpgpt2_ref.parallel.collectives import all_reduce, barrier
"""
ANY = re.compile("")


@dataclass(frozen=True)
class Kind:
    name: str
    group: str  # cell, interrupt, around, leak, stranger, command, malformed
    run: Callable
    says: re.Pattern = ANY
    devices: tuple[str, ...] = ("cpu", "cuda")
    ends_ranks: bool = False  # on purpose: the campaign starts others
    share: float = 1.0  # of the tries asked for: fifty starts are one try


def said(call) -> str | None:
    try:
        call()
    except (Exception, KeyboardInterrupt) as e:
        return f"{type(e).__name__}: {e}"
    return None

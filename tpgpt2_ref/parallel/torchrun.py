"""torchrun's variables, read in one place."""
from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import UserError


class Rank(NamedTuple):
    """Which rank of how many this process is."""

    rank: int
    size: int
    local_rank: int  # on its host: the GPU it takes
    share_gpu: bool  # ranks may share a GPU: to check correctness, never to time


def torchrun_env() -> Rank | None:
    """This process's place in a group, None if nobody started one."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return Rank(rank, size, int(os.environ.get("LOCAL_RANK", rank)), share_gpu())
    except ValueError as e:
        raise UserError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {e}") from e


def share_gpu() -> bool:
    """TPGPT2_SHARE_GPU=1: several ranks on one GPU."""
    return os.environ.get("TPGPT2_SHARE_GPU") == "1"

"""torchrun's variables, read and written in one place."""
from __future__ import annotations

import getpass
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError

PATIENCE = 5.0  # seconds for the name of a host that is just starting


class Rank(NamedTuple):
    """Which rank of how many this process is."""

    rank: int
    size: int
    local_rank: int  # on its host: the GPU it takes
    share_gpu: bool  # ranks may share a GPU: to check correctness, never to time
    meeting: Path | None  # the folder where ranks of one host meet; None: at MASTER_ADDR and MASTER_PORT


def torchrun_env() -> Rank | None:
    """This process's place in a group, None if nobody started one. Raises UserError for one that can't be."""
    if not os.environ.get("RANK") or not os.environ.get("WORLD_SIZE"):
        return None
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError as e:
        raise UserError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {e}") from e
    if not 0 <= rank < size or local_rank < 0:
        raise UserError(f"RANK={rank} of WORLD_SIZE={size}, LOCAL_RANK={local_rank}: ranks go from 0 to WORLD_SIZE - "
                        "1. Unset these variables if no torchrun started this process")
    meeting = os.environ.get("RANKS_MEET_IN")
    return Rank(rank, size, local_rank, share_gpu(), Path(meeting) if meeting else None)


def rank_env(rank: int, size: int, meeting: Path) -> dict[str, str]:
    """The variables of one rank of a group on this host: who it is, that it talks over loopback alone, and that its
    temporary folder is the one where they meet. What torch compiles stays where other processes find it."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "RANKS_MEET_IN": str(meeting),
            "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback, "TMPDIR": str(meeting),
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", _torch_compiles_into()),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))}


def _torch_compiles_into() -> str:
    """The folder that torch takes by itself for what it compiles."""
    try:
        user = getpass.getuser().replace("\\", "_").replace("/", "_")
    except (KeyError, OSError):  # a user without a name
        user = f"uid_{os.getuid()}"
    return os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")


def symmetric_memory_socket() -> Path:
    """Where torch's symmetric memory has a socket of this process while memory is shared; it takes no other name."""
    folder = next((os.environ[name] for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR") if name in os.environ), "/tmp")
    return Path(folder, f"symm_mem-{os.getpid()}")


def master() -> str:
    """MASTER_ADDR:MASTER_PORT, where the ranks of torchrun meet. Raises UserError if that can't be a place to meet."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        raise UserError(f"RANK and WORLD_SIZE are set, {'MASTER_PORT' if host else 'MASTER_ADDR'} is not: start the "
                        "ranks with torchrun, or unset RANK and WORLD_SIZE and use --tp")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"MASTER_PORT={port} is no port: give a number from 1 to 65535")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.getaddrinfo(host, int(port))
            return f"{host}:{port}"
        except (OSError, UnicodeError) as e:
            if time.monotonic() > deadline:
                raise UserError(f"MASTER_ADDR={host} is no host that this machine can find ({e})") from e
            time.sleep(0.5)


@contextmanager
def the_only(group: Rank | None) -> Iterator[None]:
    """For the time of a block no other process of this user and host is this rank of a group at this MASTER_PORT.

    The claim is a name that the kernel keeps on Linux, beside the ports, and gives up when the process ends. Elsewhere,
    and between hosts, the group's store tells when it forms. Raises UserError if another process has the claim.
    """
    if group is None or group.meeting is not None or group.size == 1 or sys.platform != "linux":
        yield
        return
    at = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            claim.bind("\0tpgpt2 " + sha256(f"{os.getuid()} {at} {group.rank}".encode()).hexdigest())
        except OSError as e:
            raise UserError(f"another process is rank {group.rank} of the group at {at}: each group needs its own "
                            "MASTER_PORT") from e
        yield


def share_gpu() -> bool:
    """TPGPT2_SHARE_GPU=1: several ranks on one GPU."""
    return os.environ.get("TPGPT2_SHARE_GPU") == "1"

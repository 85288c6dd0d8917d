"""Diagram 6: what connects the ranks of this machine, each link's limit, and a dial that slows the link down.

    LIMITS         what each kind of link can carry, by its data sheet; `recorded/nvml.py` says what this machine has
    DIAL           the same collectives over NVLink, host memory, sockets, gloo, two hosts on a shaped cable
    sweep()        runs `bench collectives` at one position of the dial, rows arriving one by one

The diagram's 600 and 64 GB/s count both directions and its 12.5 counts one. Here every figure is one way.
The driver decides how NCCL moves data when it starts, so each position of the dial is a set of fresh processes.
Nothing here imports torch.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import RankError, UserError
from ..parallel.launch import gpu_count
from ..recorded.nvml import machine_links, pcie_gb_per_s
from .two_hosts import missing as two_hosts_missing
from .two_hosts import shaped_mbit, two_hosts


@dataclass(frozen=True)
class Limit:
    """What a link can carry, by its data sheet, and what the diagram says of it."""

    name: str
    one_way_gb_per_s: float
    diagram_gb_per_s: float | None = None
    note: str = ""


# NVLink: all lanes of one GPU, from NVIDIA's data sheets, which give the sum of both directions.
LIMITS = (
    Limit("NVLink 3 (A100)", 300, 600, "the diagram's 600 is the sum of both directions"),
    Limit("NVLink 4 (H100, H200)", 450, None, "sold as 900, both directions"),
    Limit("NVLink 5 (B200)", 900, None, "sold as 1800, both directions"),
    Limit("PCIe Gen4 x16", pcie_gb_per_s(4, 16), 64, "the diagram's 64 is the sum of both directions"),
    Limit("PCIe Gen5 x16", pcie_gb_per_s(5, 16)),
    Limit("100 Gbit/s Ethernet", 12.5, 12.5, "already one way"),
)


@dataclass(frozen=True)
class Position:
    """One position of the dial: how the ranks are made to talk."""

    name: str
    device: str
    stands_for: str
    env: dict[str, str] = field(default_factory=dict)

    def path(self, way: str) -> str:
        """The name of a way to move data at this position: "nccl" as the machine is, "nccl/sockets" turned down."""
        return way if self.name in ("as is", "gloo") else f"{way}/{self.name.replace(' ', '-')}"


DIAL = {p.name: p for p in (
    Position("as is", "cuda", "the machine's own link"),
    Position("host memory", "cuda", "PCIe: GPUs that must go through the host's memory", {"NCCL_P2P_DISABLE": "1"}),
    Position("sockets", "cuda", "Ethernet: GPUs that must go through the network stack, here its loopback",
             {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_NET": "Socket"}),
    Position("gloo", "cpu", "no GPU: CPU tensors over the loopback"),
    Position("two hosts", "cpu", "Ethernet: CPU tensors between two network namespaces, over a shaped cable"),
)}


def turn_dial(position: str) -> None:
    """Make the NCCL that this process and its children will start use this position's link."""
    os.environ.update(DIAL[position].env)


def describe(position: str, device: str) -> str:
    """The link in words, as a row of results names it."""
    if position == "two hosts":
        if (mbit := shaped_mbit()) is None:
            raise UserError("this process stands at no shaped cable: start with --link \"two hosts\" and no torchrun, "
                            "or measure two real machines with --link \"as is\"")
        return f"two network namespaces, shaped to {mbit / 1000:g} Gbit/s"
    if device == "cpu":
        return "loopback"
    return machine_links()["links"] if position == "as is" else f"{position} ({position_env(position)})"


def position_env(position: str) -> str:
    return " ".join(f"{k}={v}" for k, v in DIAL[position].env.items())


def positions() -> dict[str, str | None]:
    """Each position of the dial, and why this machine can't turn to it, or None if it can."""
    gpus = gpu_count()
    no_gpu = None if gpus > 1 else f"needs two GPUs, this machine has {gpus}"
    return {p.name: no_gpu if p.device == "cuda" else two_hosts_missing() if p.name == "two hosts" else None
            for p in DIAL.values()}


def sweep(position: str, world: int = 2, options: tuple[str, ...] = ()) -> Iterator[tuple[dict, list[float]]]:
    """(row, samples) of `bench collectives` at one position of the dial, each as soon as rank 0 has it.

    options  more of the command's own arguments, such as ("--sizes", "1K,1M")
    """
    argv = ["bench", "collectives", "--json", "--link", position, "--tp", str(world), *options]
    if position == "two hosts":
        with two_hosts() as hosts:
            yield from _rows([host.torchrun(argv) for host in hosts], position)
    else:
        yield from _rows([[sys.executable, "-m", "tpgpt2_ref", *argv]], position)


def _rows(commands: list[list[str]], position: str) -> Iterator[tuple[dict, list[float]]]:
    """Run the commands together and yield what the first one reports, line by line, on stderr."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    first = subprocess.Popen(commands[0], stderr=subprocess.PIPE, text=True, **quiet)
    others = [subprocess.Popen(command, stderr=subprocess.DEVNULL, **quiet) for command in commands[1:]]
    said = ""
    try:
        for line in first.stderr:
            if line.startswith('{"row"'):
                report = json.loads(line)
                yield report["row"], report["us"]
            elif line.startswith("error: "):
                said = line.removeprefix("error: ").strip()
        first.wait()
    finally:
        for process in (first, *others):
            process.terminate()
        for process in (first, *others):
            process.wait()
        first.stderr.close()
    if first.returncode:
        raise (UserError if first.returncode == 2 else RankError)(f"{position}: {said or 'the bench failed'}")



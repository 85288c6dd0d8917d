"""Diagram 6: what connects the ranks of this machine, each link's limit, and a dial that slows the link down.

    gpu_links()    what NVML says: NVLink or PCIe between each pair of GPUs, GB/s one way
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
from .two_hosts import missing as two_hosts_missing
from .two_hosts import shaped_mbit, two_hosts


@dataclass(frozen=True)
class Limit:
    """What a link can carry, by its data sheet, and what the diagram says of it."""

    name: str
    one_way_gb_per_s: float
    diagram_gb_per_s: float | None = None
    note: str = ""


def pcie_gb_per_s(generation: int, width: int) -> float:
    """One way, after the line code: lanes of 2.5, 5, 8, 16, 32 GT/s at 8 of 10 bits, from generation 3 128 of 130."""
    gigatransfers = {1: 2.5 * 8 / 10, 2: 5 * 8 / 10}.get(generation, 8 * 2 ** (generation - 3) * 128 / 130)
    return width * gigatransfers / 8


# NVLink: lanes of one GPU, all of them, from NVIDIA's data sheets (which give the sum of both directions).
LIMITS = (
    Limit("NVLink 3 (A100)", 300, 600, "the diagram's 600 is the sum of both directions"),
    Limit("NVLink 4 (H100, H200)", 450, None, "sold as 900, both directions"),
    Limit("NVLink 5 (B200)", 900, None, "sold as 1800, both directions"),
    Limit("PCIe Gen4 x16", pcie_gb_per_s(4, 16), 64, "the diagram's 64 is the sum of both directions"),
    Limit("PCIe Gen5 x16", pcie_gb_per_s(5, 16)),
    Limit("100 Gbit/s Ethernet", 12.5, 12.5, "already one way"),
)
NVLINK_LANE = {"3": 25.0, "4": 25.0, "5": 50.0}  # GB/s one way, for drivers that don't say: 12, 18 and 18 lanes above


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


def nvml():
    """NVIDIA's management library, or one line that says how to get it."""
    try:
        import pynvml
    except ImportError as e:
        raise UserError("links are read through NVML, whose Python package is missing: "
                        "pip install nvidia-ml-py") from e
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as e:
        raise UserError(f"NVML finds no NVIDIA driver here ({e})") from e
    return pynvml


def gpu_links() -> list[dict]:
    """What connects each pair of this machine's GPUs: {a, b, link, lanes, one_way_gb_per_s}.

    Over an NVLink switch all of a GPU's lanes serve any pair; without one, only those that end at the peer.
    """
    n = nvml()
    gpus = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
    rows = []
    for a in range(len(gpus)):
        for b in range(a + 1, len(gpus)):
            lanes = _nvlink_lanes(n, gpus[a], peer=gpus[b])
            if lanes:
                row = {"link": lanes[0]["link"], "lanes": len(lanes),
                       "one_way_gb_per_s": round(sum(lane["gb_per_s"] for lane in lanes), 1)}
            else:
                row = min((_pcie(n, gpus[i]) for i in (a, b)), key=lambda r: r["one_way_gb_per_s"])
            rows.append({"a": a, "b": b, **row})
    return rows


def machine_links() -> dict[str, str]:
    """{"links", "driver"} of a machine card, in words: "NVLink 4, 18 lanes, 478 GB/s one way". Never raises."""
    try:
        n = nvml()
        gpu = n.nvmlDeviceGetHandleByIndex(0)
        lanes, pcie = _nvlink_lanes(n, gpu), _pcie(n, gpu)
        words = [f"{lanes[0]['link']}, {len(lanes)} lanes, "
                 f"{sum(lane['gb_per_s'] for lane in lanes):.0f} GB/s one way a GPU"] if lanes else []
        words += [f"{pcie['link']}, {pcie['one_way_gb_per_s']} GB/s one way"]
        return {"links": "; ".join(words), "driver": _text(n.nvmlSystemGetDriverVersion())}
    except UserError as e:
        return {"links": f"unknown: {e}", "driver": "unknown"}


def _nvlink_lanes(n, gpu, peer=None) -> list[dict]:
    """The GPU's active NVLink lanes (those that reach `peer`): name and GB/s one way of each."""
    if peer is not None and n.nvmlDeviceGetP2PStatus(gpu, peer, n.NVML_P2P_CAPS_INDEX_NVLINK) != n.NVML_P2P_STATUS_OK:
        return []
    lanes = []
    for i in range(n.NVML_NVLINK_MAX_LINKS):
        try:
            if not n.nvmlDeviceGetNvLinkState(gpu, i):
                continue
            if peer is not None and not _ends_at(n, gpu, i, peer):
                continue
            version = _nvlink_version(n, n.nvmlDeviceGetNvLinkVersion(gpu, i))
            speed = n.nvmlDeviceGetFieldValues(gpu, [n.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON])[0].value.uiVal / 1000
            lanes.append({"link": f"NVLink {version}", "gb_per_s": speed} if speed else  # a guest may not be told
                         {"link": f"NVLink {version} (speed by its version)",
                          "gb_per_s": NVLINK_LANE.get(version.split(".")[0], 0.0)})
        except n.NVMLError:
            break  # no such lane on this GPU
    return lanes


def _nvlink_version(n, value: int) -> str:
    """NVML counts versions: 6 is NVML_NVLINK_VERSION_4_0, NVLink 4."""
    head = "NVML_NVLINK_VERSION_"
    names = {getattr(n, name): name.removeprefix(head) for name in dir(n) if name.startswith(head)}
    return names.get(value, str(value)).replace("_", ".").removesuffix(".0")


def _ends_at(n, gpu, lane, peer) -> bool:
    if n.nvmlDeviceGetNvLinkRemoteDeviceType(gpu, lane) == n.NVML_NVLINK_DEVICE_TYPE_SWITCH:
        return True
    remote = n.nvmlDeviceGetNvLinkRemotePciInfo(gpu, lane)
    return _text(remote.busId).lower() == _text(n.nvmlDeviceGetPciInfo(peer).busId).lower()


def _pcie(n, gpu) -> dict:
    generation, width = n.nvmlDeviceGetMaxPcieLinkGeneration(gpu), n.nvmlDeviceGetMaxPcieLinkWidth(gpu)
    return {"link": f"PCIe Gen{generation}", "lanes": width,
            "one_way_gb_per_s": round(pcie_gb_per_s(generation, width), 1)}


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else value

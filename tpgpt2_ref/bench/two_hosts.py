"""Two hosts inside one: two network namespaces joined by a virtual cable whose rate is shaped.

Each namespace has its own loopback, addresses and interface, so that ranks in them meet as ranks of two machines
do: over TCP, by address. Linux as root, with `ip` and `tc` (the package iproute2); nothing outside the two
namespaces is touched, and both are gone when the block ends.
"""
from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import UserError

INTERFACE = "tpgpt2-{}m"  # the cable's ends carry its rate in their name, so that ranks know what they run on


@dataclass(frozen=True)
class Host:
    """One end of the cable."""

    namespace: str
    rank: int
    address: str
    interface: str

    def torchrun(self, argv: list[str], hosts: int = 2, port: int = 29500) -> list[str]:
        """The command that runs `python -m tpgpt2_ref ARGV` as this host's one rank."""
        return ["ip", "netns", "exec", self.namespace, "env", f"GLOO_SOCKET_IFNAME={self.interface}",
                "OMP_NUM_THREADS=1", sys.executable, "-m", "torch.distributed.run", "--nnodes", str(hosts),
                "--nproc-per-node", "1", "--node-rank", str(self.rank), "--master-addr", Host.address_of(0),
                "--master-port", str(port), "-m", "tpgpt2_ref", *argv]

    @staticmethod
    def address_of(rank: int) -> str:
        return f"10.77.0.{rank + 1}"


def missing() -> str | None:
    """Why this machine can't play two hosts, or None."""
    if not sys.platform.startswith("linux") or os.geteuid():
        return "network namespaces need Linux and root"
    if absent := [tool for tool in ("ip", "tc") if not shutil.which(tool)]:
        return f"{' and '.join(absent)} not found: install iproute2"
    probe = f"tpgpt2-{os.getpid()}-probe"
    if (made := _run("ip", "netns", "add", probe)).returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    try:
        shaped = _run("ip", "netns", "exec", probe, "tc", "qdisc", "add", "dev", "lo", "root", *_shape(1000))
        return f"tc cannot shape a link here: {shaped.stderr.strip()}" if shaped.returncode else None
    finally:
        _run("ip", "netns", "del", probe)


@contextmanager
def two_hosts(mbit: int = 1000):
    """[Host, Host], joined by a cable of `mbit` Mbit/s each way."""
    if reason := missing():
        raise UserError(f"cannot make two hosts on this machine: {reason}")
    hosts = [Host(f"tpgpt2-{os.getpid()}-{r}", r, Host.address_of(r), INTERFACE.format(mbit)) for r in (0, 1)]
    try:
        for host in hosts:
            _must("ip", "netns", "add", host.namespace)
        a, b = hosts
        _must("ip", "link", "add", a.interface, "netns", a.namespace,
              "type", "veth", "peer", "name", b.interface, "netns", b.namespace)
        for host in hosts:
            _must("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.interface)
            _must("ip", "-n", host.namespace, "link", "set", "lo", "up")
            _must("ip", "-n", host.namespace, "link", "set", host.interface, "up")
            _must("ip", "netns", "exec", host.namespace, "tc", "qdisc", "add", "dev", host.interface, "root",
                  *_shape(mbit))
        yield hosts
    finally:
        for host in hosts:
            _run("ip", "netns", "del", host.namespace)


def shaped_mbit() -> int | None:
    """The rate of the cable of `two_hosts` that this process stands at, None outside."""
    prefix, suffix = INTERFACE.split("{}")
    names = [name for _, name in socket.if_nameindex() if name.startswith(prefix) and name.endswith(suffix)]
    return int(names[0].removeprefix(prefix).removesuffix(suffix)) if names else None


def _shape(mbit: int) -> list[str]:
    """A token bucket: packets wait until the rate allows them."""
    return ["tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "100ms"]


def _run(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(argv, capture_output=True, text=True, timeout=20)


def _must(*argv: str) -> None:
    if (done := _run(*argv)).returncode:
        raise UserError(f"{' '.join(argv)}: {done.stderr.strip()}")

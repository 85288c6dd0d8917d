"""Witness: links, by data sheet and arithmetic."""
from __future__ import annotations

from ...bench.dial import LIMITS, pcie_gb_per_s

# What a link joins. Sources: NVIDIA's data sheets of HGX H100 and of GB200 NVL72; IEEE 802.3
REACH = {"NVLink 4": ("another GPU of the machine",),
         "NVLink 5, switched": ("another GPU of the machine", "another machine of the rack"),
         "Ethernet": ("another machine of the rack", "another machine")}


def reaches(link: str, what: str) -> bool:
    return what in REACH[link]


def one_way(link: str) -> float:
    """GB/s in one direction, of the link of `bench.dial.LIMITS` whose name starts so."""
    return next(limit.one_way_gb_per_s for limit in LIMITS if limit.name.startswith(link))


def nvlink() -> dict:
    """GB/s of one GPU's NVLink, by generation, one way and both."""
    return {f"{gpu}, {ways}": times * one_way(name) for name, gpu in (
        ("NVLink 3", "A100"), ("NVLink 4", "H100 and H200"), ("NVLink 5", "B200"))
        for ways, times in (("both ways", 2), ("one way", 1))}


def pcie4() -> dict:
    """GB/s of 16 lanes of PCIe Gen4: 16 billion transfers of a bit a second each, of which 128 in 130 are data."""
    raw, data = 16 * 16 / 8, pcie_gb_per_s(4, 16)
    return {"both ways, line code counted as data": 2 * raw, "both ways": round(2 * data, 1),
            "one way": round(data, 1)}


def ethernet(gbit_per_s: float) -> float:
    """GB/s of that many Gbit/s."""
    return gbit_per_s / 8

"""What connects this machine's GPUs, as the driver says it through NVML. GB/s are one way. Imports no torch."""
from __future__ import annotations

from ..errors import UserError

# GB/s one way of one NVLink lane, for drivers that don't say; a GPU has 12, 18 and 18 of them (NVIDIA's data sheets)
NVLINK_LANE = {"3": 25.0, "4": 25.0, "5": 50.0}


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


def pcie_gb_per_s(generation: int, width: int) -> float:
    """One way, after the line code: lanes of 2.5, 5, 8, 16, 32 GT/s at 8 of 10 bits, from generation 3 128 of 130."""
    gigatransfers = {1: 2.5 * 8 / 10, 2: 5 * 8 / 10}.get(generation, 8 * 2 ** (generation - 3) * 128 / 130)
    return width * gigatransfers / 8


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else value

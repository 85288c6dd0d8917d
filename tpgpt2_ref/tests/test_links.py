"""Links: what NVML says, on imagined machines; the dial's positions; two hosts in two network namespaces."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tpgpt2_ref.bench import dial as links
from tpgpt2_ref.bench import two_hosts
from tpgpt2_ref.cli import main
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.recorded import nvml

from .conftest import ROOT, cli_json


class FakeNVML:
    """An imagined machine: `lanes` active NVLinks a GPU at 26.562 GB/s, each to a "switch" or to a GPU's number."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_NVLINK_MAX_LINKS, NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 36, 2, 0
    NVML_NVLINK_DEVICE_TYPE_SWITCH, NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON = 2, 90
    NVML_NVLINK_VERSION_INVALID, NVML_NVLINK_VERSION_3_1, NVML_NVLINK_VERSION_4_0 = 0, 5, 6

    def __init__(self, gpus=2, lanes=(), generation=5, mbps=26562):
        self.gpus, self.lanes, self.generation, self.mbps = gpus, lanes, generation, mbps

    def nvmlInit(self): pass
    def nvmlDeviceGetCount(self): return self.gpus
    def nvmlDeviceGetHandleByIndex(self, i): return i
    def nvmlSystemGetDriverVersion(self): return b"580.1"
    def nvmlDeviceGetP2PStatus(self, a, b, cap): return 0 if self.lanes else 5
    def nvmlDeviceGetNvLinkVersion(self, gpu, lane): return 6
    def nvmlDeviceGetFieldValues(self, gpu, ids): return [SimpleNamespace(value=SimpleNamespace(uiVal=self.mbps))]
    def nvmlDeviceGetMaxPcieLinkGeneration(self, gpu): return self.generation
    def nvmlDeviceGetMaxPcieLinkWidth(self, gpu): return 16
    def nvmlDeviceGetNvLinkRemoteDeviceType(self, gpu, lane): return 2 if self.lanes[lane] == "switch" else 0
    def nvmlDeviceGetNvLinkRemotePciInfo(self, gpu, lane): return SimpleNamespace(busId=f"BUS{self.lanes[lane]}")
    def nvmlDeviceGetPciInfo(self, gpu): return SimpleNamespace(busId=f"bus{gpu}".encode())

    def nvmlDeviceGetNvLinkState(self, gpu, lane):
        if lane >= len(self.lanes):
            raise self.NVMLError("not supported")
        return 1


@pytest.mark.parametrize("machine, want", [
    (FakeNVML(2, ["switch"] * 18), ("NVLink 4", 18, 478.1)),  # H200 pairs, all lanes to a switch
    (FakeNVML(2, [1, 1, 1, 1, 5, 5]), ("NVLink 4", 4, 106.2)),  # four lanes reach GPU 1, two go elsewhere
    (FakeNVML(2, ["switch"] * 18, mbps=0), ("NVLink 4 (speed by its version)", 18, 450.0)),  # as a guest sees it
    (FakeNVML(2, [], 4), ("PCIe Gen4", 16, 31.5)),
    (FakeNVML(2, [], 5), ("PCIe Gen5", 16, 63.0)),
])
def test_what_connects_two_gpus(machine, want, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", machine)
    (row,) = nvml.gpu_links()
    assert (row["a"], row["b"]) == (0, 1) and (row["link"], row["lanes"], row["one_way_gb_per_s"]) == want
    words = nvml.machine_links()
    assert words["driver"] == "580.1" and ("NVLink 4" in words["links"]) == bool(machine.lanes)


def test_without_nvml_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UserError, match="pip install nvidia-ml-py"):
        nvml.gpu_links()
    assert "nvidia-ml-py" in nvml.machine_links()["links"]  # a machine card says so, and is still made


def test_limits_are_one_way_and_the_diagrams_are_not():
    by_name = {limit.name: limit for limit in links.LIMITS}
    assert by_name["PCIe Gen4 x16"].one_way_gb_per_s == pytest.approx(31.5, abs=0.02)
    assert nvml.pcie_gb_per_s(3, 16) == pytest.approx(15.75, abs=0.01) and nvml.pcie_gb_per_s(2, 8) == 4
    drawn = {limit.diagram_gb_per_s: limit.diagram_gb_per_s / limit.one_way_gb_per_s
             for limit in links.LIMITS if limit.diagram_gb_per_s}
    assert drawn == {600: 2, 64: pytest.approx(2, rel=0.02), 12.5: 1}


def test_the_dial_turns_nccl_down_step_by_step(monkeypatch):
    dial = links.DIAL
    # each step takes one more road away
    assert dial["as is"].env.items() < dial["host memory"].env.items() < dial["sockets"].env.items()
    paths = [dial[p].path("nccl") for p in ("as is", "host memory", "sockets")]
    assert paths == ["nccl", "nccl/host-memory", "nccl/sockets"]
    assert dial["two hosts"].path("gloo") == "gloo/two-hosts" and dial["gloo"].path("gloo") == "gloo"
    monkeypatch.setattr(os, "environ", {"OTHER": "1"})
    links.turn_dial("sockets")
    assert os.environ == {"OTHER": "1", **dial["sockets"].env}


def test_a_position_that_this_machine_lacks_says_why(monkeypatch):
    monkeypatch.setattr(links, "gpu_count", lambda: 1)
    assert links.positions()["as is"] == "needs two GPUs, this machine has 1" and links.positions()["gloo"] is None


def test_loopback_is_never_called_two_hosts(capfd, monkeypatch):
    """Ranks that don't stand at a shaped cable can't record themselves as two hosts."""
    with pytest.raises(UserError, match="no shaped cable"):
        links.describe("two hosts", "cpu")
    monkeypatch.setattr(two_hosts.shutil, "which", lambda tool: None)
    assert main(["bench", "collectives", "--link", "two hosts", "--sizes", "1K"]) == 2
    assert "two hosts" in capfd.readouterr().err


def test_a_sweep_that_is_left_early_leaves_no_process(monkeypatch):
    script = """import sys, time
print('{"row": {"n": 1}, "us": [1.0]}', file=sys.stderr, flush=True)
time.sleep(60)"""
    rows = links._rows([[sys.executable, "-c", script]], "gloo")
    assert next(rows) == ({"n": 1}, [1.0])
    process = rows.gi_frame.f_locals["first"]
    rows.close()
    assert process.returncode == -signal.SIGTERM


def test_a_bench_that_fails_says_what_the_bench_said():
    script = "import sys; print('error: no way', file=sys.stderr); sys.exit(2)"
    with pytest.raises(UserError, match="sockets: no way"):
        list(links._rows([[sys.executable, "-c", script]], "sockets"))


@pytest.fixture
def namespaces():
    """Skips where this machine can't play two hosts, with the reason."""
    if reason := two_hosts.missing():
        pytest.skip(reason)


def test_torchrun_between_two_namespaces(namespaces):
    """Two hosts, a cable of 200 Mbit/s: the same greedy ids as one rank, and the cable bounds what is measured."""
    argv = ["generate", "--model", "random:gpt2-test", "--device", "cpu", "--prompt-ids", "1,2,3", "--max-new-tokens",
            "4"]
    one = cli_json(*argv)
    with two_hosts.two_hosts(mbit=200) as hosts:
        ranks = [subprocess.Popen(host.torchrun([*argv, "--tp", "2", "--json"]), stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, cwd=ROOT) for host in hosts]
        (out, err), _ = [rank.communicate(timeout=100) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], err
    two = json.loads(out)
    assert two["token_ids"] == one["token_ids"] and two["tp"] == 2 and two["world"] == "gloo"
    assert not [name for name in os.listdir("/run/netns") if name in {host.namespace for host in hosts}]


def test_the_cable_bounds_what_is_measured(namespaces):
    rows = [row for row, _ in links.sweep("two hosts", 2, ("--sizes", "1M", "--ops", "all_reduce", "--samples", "3"))]
    assert {r["path"] for r in rows} == {"gloo/two-hosts", "bare gloo/two-hosts"}
    assert {r["link"] for r in rows} == {"two network namespaces, shaped to 1 Gbit/s"}
    assert all(0.01 < r["busbw_gb_per_s"] < 0.125 * 1.3 for r in rows)  # the bucket lets a first burst through

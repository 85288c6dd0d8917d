"""Explorers in JupyterLab, without a browser: what the widget shows, hears and measures, on CPU ranks."""
from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tpgpt2_ref.errors import UserError
from tpgpt2_ref.explorers import NAMES, widget

STEP = {"gpt2": "gpt2-test", "tp": 1, "batch": 1, "tokens": 16, "context": 0, "sum": "auto", "link": ""}
POINTS = {
    "collective": {"algorithm": "ring", "world": 2, "bytes": 1536},
    "timeline": {"model": "gpt2-test", "tp": 2, "plan": "as-drawn", "phase": "decode", "graph": False, "batch": 2,
                 "prompt_len": 16},
    "roofline": {"backend": "NAIVE", "phase": "decode", "batch": 1, "seq_len": 32, "head_size": 64, "dtype": "float32"},
    "cost": STEP,
}
BAD = {  # what can't be measured here: a word of the one line that says so
    "collective": ({**POINTS["collective"], "bytes": 1 << 40}, "--sizes"),
    "timeline": ({**POINTS["timeline"], "graph": True}, "--graph needs GPUs"),
    "roofline": ({**POINTS["roofline"], "backend": "FLASH_ATTN_3"}, "FLASH_ATTN_3 does not run here"),
    "cost": ({**STEP, "gpt2": "gpt2", "tokens": 1, "context": 10}, "at least 65 tokens"),
}


class Heard:
    """A widget whose messages to the browser are kept."""

    def __init__(self, name: str):
        self.widget, self.messages = widget.Explorer(name), []
        self.widget.send = self.messages.append

    def ask(self, **content):
        self.widget._hear(self.widget, content, [])

    def last(self, seconds: float = 120) -> dict:
        """The message that ends a measurement."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := [m for m in self.messages if "done" in m or "failed" in m]:
                return found[-1]
            time.sleep(0.05)
        raise AssertionError(f"no end after {seconds} s: {self.messages}")


def group(pid: int) -> list[str]:
    """The commands of a process group."""
    done = subprocess.run(["ps", "-eo", "pgid=,args="], capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if line.split()[0] == str(pid) and "<defunct>" not in line]


def gone(pid: int, seconds: float = 5) -> bool:
    """Whether a killed group has ended: its processes may still be on their way out."""
    deadline = time.monotonic() + seconds
    while group(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not group(pid)


@pytest.mark.parametrize("name", NAMES)
def test_an_explorer_shows_html_and_a_live_widget(name):
    data, _ = widget.Explorer(name, {"question": "How many?"} if name == "prediction" else {})._repr_mimebundle_()
    assert f'<div data-explorer="{name}"' in data["text/html"] and "application/vnd.jupyter.widget-view+json" in data
    assert len(data["text/html"]) < 20_000


def test_the_script_comes_over_the_channel():
    heard = Heard("heads")
    heard.ask(ask="script")
    assert "tpgpt2.mount" in heard.messages[0]["script"] and ".tpx" in heard.messages[0]["style"]
    assert len(widget.LOADER) < 3000  # a notebook keeps this, and not the script


def test_an_unknown_explorer_is_refused():
    with pytest.raises(UserError, match="unknown explorer 'head'; known: heads, selector"):
        widget.Explorer("head")


def test_the_reader_s_ranks_run_the_chosen_point():
    heard = {name: Heard(name) for name in POINTS}
    for name, point in POINTS.items():
        heard[name].ask(ask="measure", point=point)
    ends = {name: h.last() for name, h in heard.items()}
    assert not [end for end in ends.values() if "failed" in end]
    dots = {name: end["done"].get("dots") for name, end in ends.items()}
    assert {(d["path"], d["world"], d["bytes"]) for d in dots["collective"]} == {("gloo", 2, 1536)}
    assert [(d["backend"], d["seq_len"]) for d in dots["roofline"]] == [("NAIVE", 32)]
    assert all(d["us_median"] > 0 and d["here"] for d in (*dots["collective"], *dots["roofline"]))
    assert [(d["gpt2"], d["tp"], d["us"] > 0) for d in dots["cost"]] == [("gpt2-test", 1, True)]
    here = ends["timeline"]["done"]["timeline"]
    assert [s["op"] for s in here["stages"]] == [None, *["all_gather"] * 3, None, None, "all_reduce"]
    assert here["layers"] == 2 and here["step_us"] > 0 and here["model"] == "gpt2-test"
    assert any("progress" in m for m in heard["collective"].messages)


def test_what_cannot_be_measured_is_one_line():
    heard = {name: Heard(name) for name in BAD}
    for name, (point, _) in BAD.items():
        heard[name].ask(ask="measure", point=point)
    for name, (_, said) in BAD.items():
        line = heard[name].last()["failed"]
        assert said in line and "\n" not in line, name


@pytest.mark.parametrize("how", ["the reader's stop", "the widget's close", "another measurement"])
def test_nothing_is_left_running(how):
    heard = Heard("collective")
    heard.ask(ask="measure", point={**POINTS["collective"], "bytes": 1 << 24})
    pid = heard.widget.measurement.process.pid
    deadline = time.monotonic() + 60
    while len(group(pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(group(pid)) >= 2
    if how == "the reader's stop":
        heard.ask(ask="stop")
    elif how == "the widget's close":
        heard.widget.close()
    else:
        heard.ask(ask="measure", point={**POINTS["collective"], "world": 1})
        heard.ask(ask="stop")
    assert gone(pid)
    assert not [m for m in heard.messages if "done" in m]


def test_it_ends_with_the_process_that_asked():
    code = ("import sys\nfrom tpgpt2_ref.explorers.measure import Measurement\n"
            "m = Measurement('collective', {'world': 2, 'bytes': 1 << 24, 'algorithm': 'ring'}, print)\n"
            "print(m.process.pid, flush=True)\nsys.stdin.read()")
    asker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid = int(asker.stdout.readline())
    assert group(pid)
    asker.kill()
    asker.wait()
    assert gone(pid)

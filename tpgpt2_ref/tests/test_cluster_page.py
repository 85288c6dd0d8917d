"""What the page on cluster kernels counts and shows: kernels of a step, one kernel to be watched, figures of rows."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpgpt2_ref import figures
from tpgpt2_ref.course.watched import Watched, tiny
from tpgpt2_ref.engine.cluster_step import ClusterSteps
from tpgpt2_ref.engine.decode_step import decode_step
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.figures import clusters, rows
from tpgpt2_ref.kernels import KERNELS, Kernels
from tpgpt2_ref.kernels.clusters import plain
from tpgpt2_ref.kernels.clusters.emulated import why_no_emulator
from tpgpt2_ref.recorded import results

MACHINE = {"slug": "1x-other", "kind": "cuda", "device": "Other", "count": 1, "links": "", "python": "3.12",
           "environment": {}}


def test_a_step_has_as_many_kernels_as_the_page_says():
    called, small = [], tiny()
    choice = Kernels.choose((), fused_sum=False)

    def counted(name):
        kernel = getattr(choice, name)
        return lambda *args, **kwargs: (called.append(name), kernel(*args, **kwargs))[1]

    decode_step(small.model, [small.kv_cache], small.state, replace(choice, **{k: counted(k) for k in KERNELS}))
    assert len(called) == clusters.kernels(1, "+pdl")
    launched = []

    class Launched:
        constant = staticmethod(lambda name: 0)
        launch = staticmethod(lambda **how: launched.append(how))

    ClusterSteps(small.model, [small.kv_cache], lambda *_: Launched).step(small.state)()
    assert len(launched) == clusters.kernels(1, "+clusters")


@pytest.mark.skipif(why_no_emulator() is not None, reason="no C++ compiler")
@torch.no_grad()
def test_the_watched_kernel_is_its_twin_and_its_planted_race_is_found():
    small = tiny("bfloat16")
    slots = torch.randn(2, 1, 128, generator=torch.Generator().manual_seed(1))
    twin = plain.mlp(slots.sum(0), small.model.h[0])
    torch.testing.assert_close(Watched(small).run(slots, seed=3), twin, rtol=0, atol=1e-5)
    assert "which has ended" in Watched(small, without="wait(&s.sums_ready);").first_fault(slots, 4)


def test_what_cannot_be_watched():
    with pytest.raises(UserError, match="16 bits"):
        Watched(tiny())
    with pytest.raises(UserError, match="0 times"):
        Watched(tiny("bfloat16"), without="wait_for_nothing();")


@pytest.fixture
def shown(monkeypatch):
    """Texts of what is displayed."""
    texts = []
    monkeypatch.setattr("IPython.display.display", lambda *things: texts.extend(str(t.data) for t in things))
    return texts


def test_figures_say_when_nothing_is_recorded(shown, monkeypatch):
    monkeypatch.setattr(rows, "run", lambda name, gpus: results.Run(name, MACHINE, [{"rung": "eager"}], "2026-01-01"))
    figures.cluster_gain()
    monkeypatch.setattr(rows, "run", nothing)
    figures.cluster_lanes()
    assert len(shown) == 2 and all("recorded yet" in text for text in shown)


def nothing(name, gpus):
    raise UserError("nothing")


def test_figures_draw_what_is_recorded(shown, monkeypatch):
    step = {"engine": "tpgpt2", "model": "gpt2", "tp": 1, "sum": "none", "batch": 1, "prompt_len": 128}
    recorded = {
        "decode": [{**step, "rung": rung, "us_per_step_median": us}
                   for rung, us in (("+pdl", 200.0), ("+clusters", 150.0))],
        "phases": [{"kernel": kernel, "place": place, "min_ns": ns / 2, "median_ns": ns, "max_ns": 2 * ns}
                   for kernel in ("attention", "mlp") for place, ns in (("start", 0), ("x", 900), ("end", 4000))]}
    recorded["decode_clusters"] = recorded["decode"]
    monkeypatch.setattr(rows, "run", lambda name, gpus: results.Run(name, MACHINE, recorded[name], "2026-01-01"))
    figures.cluster_gain()
    assert "At best 0.75 of the time (GPT-2 small, batch 1, 1 GPU); slower in 0 of 1" in "".join(shown)
    assert rows.best_step_us("gpt2", 1, 1)[::2] == (150.0, "+clusters")
    figures.cluster_lanes()
    assert "mlp: 4.0 µs, the longest stretch 3.1: end" in "".join(shown)

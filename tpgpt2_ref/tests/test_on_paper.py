"""What two and four GPUs say of eight "on paper", on the cost page: before eight are recorded, and after."""
from __future__ import annotations

import pytest

from tpgpt2_ref import figures
from tpgpt2_ref.cost import collectives as cost
from tpgpt2_ref.figures import rows
from tpgpt2_ref.recorded import results

MACHINE = {"kind": "cuda", "device": "Imagined", "count": 8, "torch": "2.11.0", "nccl": "2.28.9", "environment": {}}
NOTHING = "No run on eight GPUs is recorded"


@pytest.fixture
def shown(monkeypatch):
    texts = []
    monkeypatch.setattr("IPython.display.display", lambda *things: texts.extend(str(t.data) for t in things))
    return texts


def test_what_two_said_of_four_is_judged_and_of_eight_when_it_is_recorded(shown):
    figures.on_paper()
    (text,) = shown
    eight = any(run.machine["count"] == 8 for run in results.recorded("decode"))
    assert "2 GPUs said" in text and "times what came on 4" in text
    assert (NOTHING in text) != eight and ("times what came on 8" in text) == eight


def test_eight_gpus_that_take_what_was_said(shown, monkeypatch):
    """An imagined machine on which two's answer is right, and four's is not: the ratios say so."""
    kept = rows.run
    us = {n: cost.predict(kept("cost_model", 2).rows, "all_reduce", n, 8, path, graph=True)["us"]
          for path, n in (("push", rows.TOKEN), ("nccl", rows.CUSTOM))}
    sums = [{"op": "all_reduce", "path": path, "world": 8, "graph": True, "bytes": n, "us_median": us[n]}
            for path, n in (("push", rows.TOKEN), ("nccl", rows.CUSTOM))]

    def run(name, gpus):
        if gpus < 8:
            return kept(name, gpus)
        return results.Run(name, MACHINE, sums if name == "collectives" else [], "2026-01-01")

    monkeypatch.setattr(rows, "run", run)
    figures.on_paper()
    assert "2 GPUs said 1.00 to 1.00 times what came on 8." in shown[0] and NOTHING not in shown[0]
    assert "4 GPUs said" in shown[0] and "8x Imagined" in shown[0]
    assert shown[0].count("not recorded") == 4  # its decode steps and its prefill

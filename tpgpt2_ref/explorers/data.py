"""What the page's explorers know: the package's own tables and the recorded runs, as one JSON document. No torch.

`embedded()` is what a built page carries as `tpgpt2-data.js` and what a live widget gets from its kernel. Nothing in it
is typed here but `GPUS` and `CEILINGS`, which are the makers' data sheets.
"""
from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from functools import cache
from statistics import median

from ..attention import matrix, vllm_rules
from ..attention.platform import KINDS
from ..config import DTYPES, FAMILY, PLANS
from ..cost.forward import INNER_MULTIPLE, VOCAB_MULTIPLE
from ..kernels.tiles import MEASURED, Vector
from ..recorded import results
from .collective import ALGORITHMS
from .heads import CUTS

GPUS = {  # name: how `select` is told of it
    "T4": {"platform": "cuda", "capability": "7.5"},
    "A100": {"platform": "cuda", "capability": "8.0"},
    "A10, RTX 3090": {"platform": "cuda", "capability": "8.6"},
    "L4, RTX 4090": {"platform": "cuda", "capability": "8.9"},
    "H100, H200": {"platform": "cuda", "capability": "9.0"},
    "B200": {"platform": "cuda", "capability": "10.0", "cuda_version": "12.8"},
    "RTX 5090": {"platform": "cuda", "capability": "12.0", "cuda_version": "12.8"},
    "MI300X": {"platform": "rocm"},
    "CPU": {"platform": "cpu"},
}
CEILINGS = {  # by a word of the device's name: NVIDIA's data sheets, without sparsity
    "H200": {"gb_per_s": 4800, "tflop_per_s": {"float16": 989, "bfloat16": 989, "float32": 67}},
    "H100": {"gb_per_s": 3350, "tflop_per_s": {"float16": 989, "bfloat16": 989, "float32": 67}},
}
KEEP = {
    "attention": ("backend", "phase", "batch", "seq_len", "heads", "head_size", "dtype", "graph", "us_median",
                  "us_p10", "us_p90"),
    "decode": ("model", "tp", "sum", "rung", "batch", "prompt_len", "new_tokens", "us_per_step_median",
               "us_per_step_p10", "us_per_step_p90"),
    "prefill": ("model", "tp", "sum", "rung", "batch", "prompt_len", "wall_us_median", "wall_us_p10", "wall_us_p90"),
    "collectives": ("path", "world", "bytes", "graph", "us_median", "us_p10", "us_p90"),
}


@cache
def embedded() -> str:
    """The whole document as JSON."""
    return json.dumps({"family": {name: asdict(config) for name, config in FAMILY.items()}, "dtypes": DTYPES,
                       "plans": PLANS, "algorithms": ALGORITHMS, "cuts": CUTS,
                       "multiples": {"vocab": VOCAB_MULTIPLE, "inner": INNER_MULTIPLE},
                       "attention_tiles": [[*shape, isinstance(tiles["attention"], Vector)]
                                           for shape, tiles in MEASURED.items() if "attention" in tiles],
                       **selection(), "machines": machines(), "timelines": timelines()},
                      separators=(",", ":"), sort_keys=False)


def selection() -> dict:
    """What `select` decides by."""
    def sizes(found):
        return {"first": found.start, "last": found[-1], "step": found.step} if isinstance(found, range) else found

    rows = [{**{k: v for k, v in asdict(row).items() if k != "qualname"}, "head_sizes": sizes(row.head_sizes),
             "install": row.install, "implemented": row.implemented} for row in matrix.MATRIX.values()]
    return {"gpus": GPUS, "kinds": KINDS, "packages": matrix.PACKAGES, "matrix": rows, "order": matrix.ORDER,
            "flash_attn": matrix.FLASH_ATTN, "aliases": matrix.ALIASES, "cache_dtypes": matrix.CACHE_DTYPES,
            "vllm": vllm()}


def vllm() -> dict:
    """vLLM's own rules by version, and the packages that they ask for."""
    versions = {name: vllm_rules.rules()[name] for name in vllm_rules.versions()}
    packages = {b["package"] for rules in versions.values() for b in rules["backends"].values() if "package" in b}
    packages |= {name for rules in versions.values() for name in rules["requires"]}
    return {"versions": versions, "defaults": vllm_rules.DEFAULTS, "cache_dtypes": vllm_rules.CACHE_DTYPES,
            "packages": sorted(packages)}


def machines() -> dict:
    """{slug: label, the cost model's rows and the recorded rows that are drawn}, of every machine that has a model or
    attention rows."""
    found = {}
    for folder in sorted(results.BOOK_RESULTS.iterdir()):
        runs = {kind: results.load(folder / f"{kind}.json") for kind in ("cost_model", *KEEP)
                if (folder / f"{kind}.json").is_file()}
        if not runs:
            continue
        first = next(iter(runs.values()))
        machine = found[folder.name] = {"label": first.label, "device": first.machine["device"],
                                        "model": runs["cost_model"].rows if "cost_model" in runs else []}
        for kind, fields in KEEP.items():
            rows = [row for row in runs[kind].rows if kept(kind, row)] if kind in runs else []
            machine[kind] = {"label": runs[kind].label if kind in runs else None, "rows": [
                {k: rounded(row[k]) for k in fields if k in row} for row in rows]}
        copies = [row["copy_gb_per_s"] for row in runs["decode"].rows if row.get("copy_gb_per_s")] \
            if "decode" in runs else []
        machine["ceilings"] = {"copy_gb_per_s": median(copies) if copies else None,
                               "sheet": next((c for word, c in CEILINGS.items() if word in machine["device"]), None)}
    return found


def kept(kind: str, row: dict) -> bool:
    """Whether an explorer draws the row: all-reduces through the door, and this package's own forwards."""
    if kind == "collectives":
        return row["op"] == "all_reduce" and not row["path"].startswith("bare ")
    return row.get("engine", "tpgpt2") == "tpgpt2"


def rounded(value):
    return float(f"{value:.5g}") if isinstance(value, float) else value


def timelines() -> list[dict]:
    """Each recorded timeline as one attention half of a layer: by rank and stage the median microseconds over layers.

    [{label, model, tp, plan, phase, graph, batch, prompt_len, step_us, layers, stages: [{stage, op, bytes, path, us by
    rank}]}]; of a collective, `us` is the least of the ranks' transfer, since only that one waited for nobody.
    """
    found = []
    for run in results.recorded("timeline"):
        cases = defaultdict(list)
        about = ("model", "tp", "plan", "phase", "graph", "batch", "prompt_len", "backend")
        for row in run.rows:
            cases[tuple(row[k] for k in about)].append(row)
        for case, rows in cases.items():
            found.append({"label": run.label, **dict(zip(about, case, strict=True)), **half_layer(rows, case[1])})
    return found


def half_layer(rows: list[dict], tp: int) -> dict:
    """Rows of one timeline -> {stages, layers, step_us}: medians over its layers' attention halves, see `timelines`."""
    inside = [r for r in rows if r["layer"].startswith("h.") and ".attn" in r["layer"] and r["kind"] != "instant"]
    calls = defaultdict(list)  # a stage's place in its layer -> its rows
    for layer in sorted({r["layer"].split(".")[1] for r in inside}):
        for rank in range(tp):
            mine = [r for r in inside if r["rank"] == rank and r["layer"].split(".")[1] == layer]
            for i, r in enumerate(mine):
                calls[i, r["stage"], r["op"]].append(r)
    stages = []
    for (_, stage, op), same in calls.items():
        us = [median(r["transfer_us" if op else "us"] for r in same if r["rank"] == rank) for rank in range(tp)]
        stages.append({"stage": stage, "op": op, "bytes": same[0]["bytes"], "path": same[0]["path"],
                       "us": [round(min(us), 3)] * tp if op else [round(x, 3) for x in us]})
    return {"stages": stages, "layers": len({r["layer"] for r in inside if r["stage"] == "T1"}),
            "step_us": round(max(r["start_us"] + r["us"] for r in rows), 1)}

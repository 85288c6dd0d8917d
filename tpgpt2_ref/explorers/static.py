"""What stands where an explorer will be: a figure or a table that needs no JavaScript, which the script replaces.

`html(name, initial)` is the whole element. What it shows is computed from the package and the recorded runs. No torch.
"""
from __future__ import annotations

import json
from html import escape

from ..attention.matrix import MATRIX, PACKAGES
from ..attention.platform import Platform, version
from ..attention.selector import get_attn_backend
from ..errors import UserError
from ..notebook.palette import COLOURS
from . import NAMES
from .collective import ALGORITHMS, collective
from .data import GPUS, embedded
from .heads import heads


def html(name: str, initial: dict | None = None) -> str:
    """<div data-explorer="NAME"> with its static figure. initial: what the explorer starts with; see its script."""
    if name not in NAMES:
        raise UserError(f"unknown explorer {name!r}; known: {', '.join(NAMES)}")
    initial = initial or {}
    inside = FIGURES[name](initial)
    return (f'<div data-explorer="{name}" data-initial="{escape(json.dumps(initial))}">'
            f'<div class="tpx-static">{inside}</div></div>')


def table(caption: str, head: list, rows: list[list]) -> str:
    cells = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def heads_figure(initial: dict) -> str:
    """The columns of Q, K and V as stripes, a head each, in the colour of the rank that holds them."""
    found = heads({"gpt2": "gpt2", "tp": 2, "cut": "by head", **initial})
    wide, rows = 600 / found["heads"], []
    for i, name in enumerate("qkv"):
        y = 10 + 34 * i
        rows.append(f'<text x="0" y="{y + 18}" font-size="12" fill="currentColor">{name.upper()}</text>')
        for h in range(found["heads"]):
            middle = (h + 0.5) * found["head_size"]
            rank = next(r["rank"] for r in found["ranks"] if r[name][0] <= middle < r[name][1])
            colour = f"var(--tp-rank-{rank % 8}, {COLOURS[f'rank-{rank % 8}'][0]})"
            rows.append(f'<rect x="{20 + h * wide:.1f}" y="{y}" width="{wide - 1:.1f}" height="26" '
                        f'fill="{colour}"><title>head {h}: rank {rank}</title></rect>')
    said = f"{len(found['parted'])} of {found['heads']} heads are parted" if found["parted"] else "no head is parted"
    label = f"c_attn's columns of {found['gpt2']} over {found['tp']} ranks, {found['cut']}: {said}"
    return (f'<svg viewBox="0 0 624 112" role="img" aria-label="{label}" style="max-width:100%">{"".join(rows)}</svg>'
            f"<p>{label}.</p>")


def selector_figure(initial: dict) -> str:
    rows = []
    for gpu, how in GPUS.items():
        cuda = how["platform"] == "cuda"
        platform = Platform(how["platform"], version(how["capability"]) if cuda else None,
                            version(how.get("cuda_version", "12.4")) if cuda else None, frozenset(PACKAGES))
        rows.append([gpu, *(get_attn_backend(12, 64, dtype, platform=platform).backend
                            for dtype in ("float16", "bfloat16", "float32"))])
    return table("What this book's selector gives each GPU, head size 64, every package installed",
                 ["GPU", "float16", "bfloat16", "float32"], rows)


def collective_figure(initial: dict) -> str:
    rows = [[name, *(f"{said['steps']} steps, {said['bytes_out']:.2f} S" for n in (2, 4, 8)
                     for said in [collective({"algorithm": name, "world": n, "bytes": 1})])] for name in ALGORITHMS]
    return table("Steps of an all-reduce, and bytes out of a rank, for tensors of S bytes",
                 ["algorithm", "2 ranks", "4 ranks", "8 ranks"], rows)


def timeline_figure(initial: dict) -> str:
    found = [t for t in json.loads(embedded())["timelines"] if t["graph"]]
    rows = [[f"{t['plan']}, {t['tp']} ranks", *(f"{sum(min(s['us']) for s in t['stages'] if s['stage'] == stage):.1f}"
                                                for stage in ("T1", "T2", "T3", "T4"))] for t in found]
    return table("Microseconds of a decode step's stages in one layer, gathers and sums included, without waiting",
                 ["plan", "T1 c_attn", "T2 attention", "T3 c_proj", "T4 all-reduce"], rows)


def roofline_figure(initial: dict) -> str:
    machines = json.loads(embedded())["machines"].values()
    rows = [row for m in machines for row in m["attention"]["rows"]
            if (row["batch"], row["seq_len"], row["head_size"], row["dtype"]) == (8, 1024, 64, "float16")]
    by = {(r["backend"], r["phase"]): f"{r['us_median']:.1f}" for r in rows}
    return table("Microseconds of attention, batch 8, 1,024 tokens, 12 heads of 64, float16",
                 ["backend", "prefill", "decode"], [[name, by.get((name, "prefill"), ""), by.get((name, "decode"), "")]
                                                    for name in MATRIX if any(b == name for b, _ in by)])


def cost_figure(initial: dict) -> str:
    machines = json.loads(embedded())["machines"]
    best: dict = {}
    for machine in machines.values():
        for r in machine["decode"]["rows"]:
            if (r["batch"], r["prompt_len"], r["rung"]) == (1, 128, "+pdl") and (r["tp"] == 1) == (r["sum"] == "none"):
                key = r["model"].removeprefix("random:"), r["tp"]
                best[key] = min(best.get(key, r["us_per_step_median"]), r["us_per_step_median"])
    ranks, models = sorted({tp for _, tp in best}), sorted({name for name, _ in best}, key=lambda m: best[m, 1])
    return table("Recorded microseconds of a decode step, batch 1, 128 tokens in the prompt, the fastest all-reduce",
                 ["model", *(f"{n} GPU{'s' * (n > 1)}" for n in ranks)],
                 [[m, *(f"{best[m, n]:.0f}" if (m, n) in best else "not measured" for n in ranks)] for m in models])


def prediction_figure(initial: dict) -> str:
    unit = f" {initial['unit']}" if initial.get("unit") else ""
    if "ask" in initial:  # [kind, query, field]: the answer is computed
        kind, query, field = initial["ask"]
        initial = {**initial, "answer": {"collective": collective, "heads": heads}[kind](query)[field]}
    why = f"<p>{escape(initial['why'])}</p>" if initial.get("why") else ""
    return (f"<p><strong>{escape(str(initial.get('question', '')))}</strong></p><details><summary>The answer</summary>"
            f"{escape(format(initial.get('answer', 0), ',g'))}{escape(unit)}{why}</details>")


def score_figure(initial: dict) -> str:
    return "<p>With JavaScript, the score of your predictions stands here.</p>"


FIGURES = {"heads": heads_figure, "selector": selector_figure, "collective": collective_figure,
           "timeline": timeline_figure, "roofline": roofline_figure, "cost": cost_figure,
           "prediction": prediction_figure, "prediction-score": score_figure}

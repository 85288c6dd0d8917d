"""Recorded rows as the figures ask for them, and the two ways to show what was found: a table, a note."""
from __future__ import annotations

from html import escape

from ..errors import UserError
from ..notebook.palette import COLOURS
from ..recorded import results

TOKEN, BATCH, CUSTOM = 1536, 32 * 1536, 8 << 20  # bytes: a token of GPT-2 small in 16 bits; 32; where vLLM's own ends
MARKS = {TOKEN: "one token", BATCH: "batch of 32", CUSTOM: "8 MiB"}
MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
# Shades, not the ranks' colours: one, two and four GPUs; or the first, second and third of a kind.
SHADES = (COLOURS["missing"][0], COLOURS["computing"][0], COLOURS["ink"][0])
BY_GPUS = dict(zip((1, 2, 4), SHADES))
GPU_MARKS, GPU_DASHES = {1: "D", 2: "o", 4: "s"}, {1: ":", 2: "-", 4: "--"}  # shades alone are too alike
NAMES = {"gpt2": "small", "gpt2-medium": "medium", "gpt2-large": "large", "gpt2-xl": "XL"}


def run(name: str, gpus: int) -> results.Run:
    """The newest recorded run of that name on a machine of so many GPUs."""
    found = [r for r in results.recorded(name) if r.machine["kind"] == "cuda" and r.machine["count"] == gpus]
    if not found:
        raise UserError(f"book/results has no {name} of a machine with {gpus} GPU(s): record one with bench --record")
    return max(found, key=lambda r: r.recorded_at)


def last(gpus: int) -> results.Run:
    """The ladder to its last rung, +clusters, by one run; the run without that rung where there is none."""
    try:
        return run("decode_clusters", gpus)
    except UserError:
        return run("decode", gpus)


def only(rows: list[dict], **wanted) -> list[dict]:
    return [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]


def sums(path: str, gpus: int = 2, graph: bool = True, op: str = "all_reduce") -> list[dict]:
    """Recorded calls of one path, by size."""
    rows = only(run("collectives", gpus).rows, op=op, path=path, world=gpus, graph=graph)
    return sorted(rows, key=lambda r: r["bytes"])


def sum_us(path: str, nbytes: int = TOKEN, **how) -> float:
    return next(r["us_median"] for r in sums(path, **how) if r["bytes"] == nbytes)


def slowdown(path: str, nbytes: int) -> float:
    """How many times NCCL's time over NVLink a recorded path takes, at the least size of at least nbytes of both."""
    slow, fast = ({r["bytes"]: r["us_median"] for r in sums(p)} for p in (path, "nccl"))
    at = min(n for n in slow.keys() & fast.keys() if n >= nbytes)
    return slow[at] / fast[at]


def places(tp: int) -> tuple[int, ...]:
    """GPUs of the machines where runs of so many ranks are looked for, in order."""
    return (2, 1) if tp == 1 else (tp,)


def step_us(model: str, tp: int, batch: int, prompt_len: int = 128, how: str = "push", rung: str = "+pdl"):
    """(microseconds of a recorded decode step, its run), or (None, None). One GPU's step is taken from the machine of
    two where that one has it, so that both stand on the same cards."""
    for gpus in places(tp):
        place = last(gpus) if rung == "+clusters" else run("decode", gpus)
        found = only(place.rows, engine="tpgpt2", model=model, tp=tp, batch=batch, prompt_len=prompt_len, rung=rung,
                     sum="none" if tp == 1 else "slots" if rung == "+clusters" else how)
        if found:
            return found[0]["us_per_step_median"], place
    return None, None


def best_step_us(model: str, tp: int, batch: int, prompt_len: int = 128):
    """(microseconds, run, rung) of a recorded decode step on the faster of the last two rungs, or three times None."""
    found = [(*step_us(model, tp, batch, prompt_len, rung=rung), rung) for rung in ("+clusters", "+pdl")]
    return min((step for step in found if step[0]), key=lambda step: step[0], default=(None, None, None))


def both_us(model: str, tp: int, batch: int):
    """(microseconds of +pdl, of +clusters, run) where one run recorded both, or three times None."""
    for gpus in {1: (2, 1), 2: (2,), 4: (4,)}[tp]:
        place = last(gpus)
        us = {r["rung"]: r["us_per_step_median"] for r in only(place.rows, engine="tpgpt2", model=model, tp=tp,
                                                               batch=batch, prompt_len=128)
              if r["sum"] in (("none",) if tp == 1 else ("push", "slots"))}
        if {"+pdl", "+clusters"} <= us.keys():
            return us["+pdl"], us["+clusters"], place
    return None, None, None


def prefill_us(model: str, tp: int, batch: int, prompt_len: int, rung: str = "fused"):
    """(wall microseconds, run) of a recorded prefill by the algorithm that was chosen, or (None, None)."""
    for gpus in places(tp):
        place = run("prefill", gpus)
        found = [r for r in only(place.rows, engine="tpgpt2", model=model, tp=tp, batch=batch, prompt_len=prompt_len,
                                 rung=rung) if (r["sum"] == "none") == (tp == 1) and r["sum"] != "nccl"]
        if found:
            return min(r["wall_us_median"] for r in found), place
    return None, None


def table(head: list[str], rows: list[list], note: str = "") -> None:
    """Show a table; a row is a list of texts or numbers. `note` says whose numbers they are."""
    from IPython.display import HTML, display

    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    display(HTML(f'<div class="tp-table"><table class="tp-rows"><thead>{line(head, "th")}</thead><tbody>{body}</tbody>'
                 f"</table>{says(note)}</div>"))


def says(note: str) -> str:
    return f'<p class="tp-note">{escape(note)}</p>' if note else ""


def note(text: str) -> None:
    """One line under a figure: the machine it shows."""
    from IPython.display import HTML, display

    display(HTML(says(text)))


def recorded_on(*runs: results.Run) -> str:
    return "Recorded: " + "; ".join(dict.fromkeys(r.label for r in runs)) + "."

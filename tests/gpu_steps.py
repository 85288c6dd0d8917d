"""The steps of `gpu_run.py`: what it runs, in which order, on how many GPUs and for how long at most."""
from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIDE_BY_SIDE = 4  # processes that share a GPU's tests: most of a test's time is a core's, compiling
BEGUN = "begun"  # folder of the tests that one of them has begun
FAMILY = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
# Two a doubling: the cost model is fitted to the powers of two and judged between them.
SIZES = ",".join(str(n) for k in range(8, 30) for n in (1 << k, 3 << k - 1)) + ",1G"


@dataclass(frozen=True)
class Step:
    """One command, its limit in seconds and the GPUs it needs; `parts`: so many of it at once, on one of these GPUs
    each, in turn; `last`: not before all others have ended."""

    name: str
    argv: list[str]
    limit: float
    gpus: int = 1
    parts: int = 1
    last: bool = False


def steps(out: Path, gpus: int, quick: bool = False) -> list[Step]:
    """All steps, in order: what is quick and tells most first."""
    keep = ["--json", "--record", str(out / "results")]
    tps = [n for n in (1, 2, 4, 8) if n <= gpus]

    def ours(*argv):
        return [sys.executable, "-m", "tpgpt2_ref", *map(str, argv)]

    def part(name, limit, tp, bench, *argv):  # one of the runs that `merge` puts together
        return Step(name, ours("bench", bench, *argv, "--json", "--record", out / "parts" / name), limit, tp)

    def pytest(*argv):
        return [sys.executable, "-m", "pytest", "tpgpt2_ref", "-v", "-rfEs", "-p", "no:cacheprovider", "--durations=12",
                *argv]

    script = [sys.executable, str(ROOT / "tests" / "gpu_run.py")]
    cost = Step("cost", [*script, "--out", str(out), "--fit"], 120, 0, last=True)
    execute = [sys.executable, str(ROOT / "tests" / "execute_notebooks.py"), "--out", str(out / "chapters")]
    chapters = [Step(f"chapter-{path.stem}", [*execute, str(path)], 300, gpus)
                for path in sorted((ROOT / "book").glob("*.ipynb"))]

    def tests(*selected, limit):  # a step for those that need 8 GPUs, 4, 2, and two for the others
        def shared(name, which, side_by_side):
            return Step(name, pytest("-m", which, "--needs", "1", "--share", str(out / BEGUN / name), *selected), limit,
                        max(1, gpus), side_by_side * max(1, gpus))

        return [*(Step(f"tests-{n}", pytest("-m", "gpus", "--needs", str(n), *selected), limit, n)
                  for n in reversed(tps[1:])),
                shared("tests-1", "gpu and not alone", SIDE_BY_SIDE), shared("tests-alone", "gpu and alone", 1)]

    if quick:
        found, both = [], ["--prompt-len", 128, 512]
        last = ["--rung", "+pdl", "+clusters", "--no-peer", "--batch", 1, 2, 4, 8]
        for tp in reversed(tps):  # what takes most GPUs first: the rest fills the gaps
            most = [16, 32] if tp == gpus else []  # with few rows, much of a fit hangs on the draw
            found.append(part(f"ladder-tp{tp}", 180, tp, "decode", "--tp", tp))
            if tp > 1:
                found += [part(f"decode-nccl-tp{tp}", 90, tp, "decode", "--tp", tp, "--sum", "nccl", *last, 64),
                          part(f"collectives-tp{tp}", 420, tp, "collectives", "--tp", tp, "--sizes", SIZES,
                               "--samples", 35, "--rounds", 7)]
            for model in FAMILY:
                shared = ["--model", f"random:{model}", "--tp", tp]
                more = [64, "--prompt-len", 512] if model == "gpt2" else [64, *most, *both]  # the ladder has gpt2's 128
                found += [part(f"decode-{model}-tp{tp}", 120, tp, "decode", *shared, *last, *more),
                          part(f"prefill-{model}-tp{tp}", 60, tp, "prefill", *shared, "--batch", 1, 8, "--repeat", 10,
                               "--prompt-len", 128, 512, 1000)]
            if most:
                found.append(part(f"decode-more-tp{tp}", 120, tp, "decode", "--model", "random:gpt2", "--tp", tp,
                                  "--rung", "+pdl", "--no-peer", "--batch", *most, *both))
        for n in tps[1:] or (2, 4):  # one rank's own part of n
            for model in ("gpt2", "gpt2-xl"):
                shared = ["--model", f"random:{model}", "--imagine", n]
                found += [part(f"decode-{model}-alone{n}", 90, 1, "decode", *shared, *last, 64, *both),
                          part(f"prefill-{model}-alone{n}", 60, 1, "prefill", *shared, "--batch", 1, 8, "--repeat", 10,
                               "--prompt-len", 128, 512, 1000)]
        for link in ("host memory", "sockets"):
            found.append(part(f"collectives-{link.split()[0]}", 120, 2, "collectives", "--tp", 2, "--link", link,
                              "--samples", 20, "--ops", "all_reduce,all_gather",
                              "--sizes", ",".join(str(1 << k) for k in range(10, 27))))
        some = tests("-k", " or ".join(("kernels", "clusters", "cuda_graph", "timeline", "trace", "push",
                                        "of_their_own", "nccl_ranks")), limit=300)
        return [*found, *traces(ours, out, tps[-1:]), *some, *chapters, cost]
    found = [
        Step("doctor", ours("doctor"), 120),
        *tests(limit=900),
        Step("collectives", ours("bench", "collectives", "--link", "all", "--sizes", SIZES, "--rounds", 3, *keep),
             900 * max(1, len(tps) - 1), max(2, gpus)),  # 2, 4 and 8 ranks, one after the other
        Step("attention", ours("bench", "attention", *keep), 600),
        Step("phases", ours("bench", "phases", *keep), 120),
    ]
    for tp in tps:
        for model in FAMILY:
            shared = ["--model", f"random:{model}", "--tp", tp, "--batch", 1, 8]
            found += [part(f"decode-{model}-tp{tp}", 480, tp, "decode", *shared, 2, 16, 32, 64, "--prompt-len", 128,
                           512),
                      part(f"prefill-{model}-tp{tp}", 240, tp, "prefill", *shared, "--prompt-len", 128, 512, 1000)]
    return [*found, *traces(ours, out, tps), *chapters, cost]


def traces(ours, out: Path, tps: list[int]) -> list[Step]:
    """Timelines of both plans, and of a prefill in one piece and in two halves."""
    found = []
    for tp in tps:
        for rung in ("fused", "halves") if tp > 1 else ():
            name = f"trace-tp{tp}-{rung}"
            found.append(Step(name, ours("trace", "--model", "random:gpt2-xl", "--tp", tp, "--rung", rung, "--batch", 8,
                                         "--prompt-len", 1000, "--graph", "--json", "--out",
                                         out / f"{name}.trace.json"), 120, tp))
        for plan in ("shipped", "as-drawn") if tp > 1 else ("shipped",):
            for phase, graph in (("prefill", []), ("decode", []), ("decode", ["--graph"])):
                name = "-".join([f"trace-tp{tp}", plan, phase, *(["graph"] if graph else [])])
                found.append(Step(name, ours("trace", "--model", "random:gpt2", "--tp", tp, "--plan", plan, "--phase",
                                             phase, "--batch", 8, "--prompt-len", 512, *graph, "--json", "--out",
                                             out / f"{name}.trace.json"), 120, tp))
    return found

"""Everything that wants GPUs, in one call: GPU tests, benches, traces, cost model, chapters.

    python tests/gpu_run.py --out FOLDER                 all that this machine's 1, 2 or 4 GPUs allow
    python tests/gpu_run.py --out FOLDER --only tests,collectives
    python tests/gpu_run.py --out FOLDER --quick         what tells most, with fewer sizes and models
    python tests/gpu_run.py --list                       the steps and their limits

Each step has its own time limit, and one that fails doesn't stop the others. FOLDER gets each step's log,
`results/<machine>/*.json` as `book/results` wants them, traces and the chapters with their new outputs. The last
thing printed is a table of what worked. Exit status 1 if any step failed.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILY = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
# Two a doubling: the cost model is fitted to the powers of two and judged between them.
SIZES = ",".join(str(n) for k in range(8, 30) for n in (1 << k, 3 << k - 1)) + ",1G"
sys.path.insert(0, str(ROOT))

from tpgpt2_ref.measure import results  # noqa: E402
from tpgpt2_ref.parallel.launch import gpu_count  # noqa: E402


@dataclass(frozen=True)
class Step:
    """One command, its limit in seconds and the GPUs it needs; `parts`: so many of it at once, each with its --part."""

    name: str
    argv: list[str]
    limit: float
    gpus: int = 1
    parts: int = 1


def steps(out: Path, gpus: int, quick: bool = False) -> list[Step]:
    """All steps, in order: what is quick and tells most first."""
    keep = ["--json", "--record", str(out / "results")]
    tps = [n for n in (1, 2, 4, 8) if n <= gpus]

    def ours(*argv):
        return [sys.executable, "-m", "tpgpt2_ref", *map(str, argv)]

    def part(name, limit, tp, bench, *argv):  # one of the runs that `merge` puts together
        return Step(name, ours("bench", bench, *argv, "--json", "--record", out / "parts" / name), limit, tp)

    def pytest(*argv):
        return [sys.executable, "-m", "pytest", "tpgpt2_ref", "-q", "-rs", "-p", "no:cacheprovider", *argv]

    cost = Step("cost", [sys.executable, __file__, "--out", str(out), "--fit"], 120)
    chapters = Step("chapters", [sys.executable, str(ROOT / "tests" / "execute_notebooks.py"), "--out",
                                 str(out / "chapters")], 600)
    compiled = Step("tests-compiled", pytest("-m", "(gpu or gpus) and compiles"), 300, parts=6)

    if quick:
        found, last = [], ["--rung", "+pdl", "--no-peer", "--batch", 1, 8]
        for tp in tps:
            found.append(part(f"ladder-tp{tp}", 150, tp, "decode", "--tp", tp))
        for tp in tps:
            for model in FAMILY:
                shared = ["--model", f"random:{model}", "--tp", tp]
                more = [64, "--prompt-len", *((512,) if model == "gpt2" else (128, 512))]
                found += [part(f"decode-{model}-tp{tp}", 90, tp, "decode", *shared, *last, *more),
                          part(f"prefill-{model}-tp{tp}", 60, tp, "prefill", *shared, "--batch", 1, 8, "--repeat", 10,
                               "--prompt-len", 128, 512, 1000)]
            if tp > 1:
                found += [part(f"decode-nccl-tp{tp}", 90, tp, "decode", "--tp", tp, "--sum", "nccl", *last, 64),
                          part(f"collectives-tp{tp}", 240, tp, "collectives", "--tp", tp, "--sizes", SIZES,
                               "--samples", 21, "--rounds", 3)]
        for n in (2, 4):  # one rank's own part of n
            for model in ("gpt2", "gpt2-xl"):
                shared = ["--model", f"random:{model}", "--imagine", n]
                found += [part(f"decode-{model}-alone{n}", 90, 1, "decode", *shared, *last, 64, "--prompt-len", 128,
                               512),
                          part(f"prefill-{model}-alone{n}", 60, 1, "prefill", *shared, "--batch", 1, 8, "--repeat", 10,
                               "--prompt-len", 128, 512, 1000)]
        for link in ("host memory", "sockets"):
            found.append(part(f"collectives-{link.split()[0]}", 120, 2, "collectives", "--tp", 2, "--link", link,
                              "--samples", 20, "--ops", "all_reduce,all_gather",
                              "--sizes", ",".join(str(1 << k) for k in range(10, 27))))
        some = pytest("-m", "(gpu or gpus) and not compiles", "-k",
                      "cuda_graph or timeline or trace or push or two_gpus or two_nccl")
        return [*found, *traces(ours, out, tps[-1:]), cost, compiled, Step("tests", some, 300), chapters]
    found = [
        Step("doctor", ours("doctor"), 120),
        compiled,
        Step("tests", pytest("-m", "(gpu or gpus) and not compiles"), 900),
        Step("collectives", ours("bench", "collectives", "--link", "all", "--sizes", SIZES, "--rounds", 3, *keep), 900,
             2),
        Step("attention", ours("bench", "attention", *keep), 600),
    ]
    for tp in tps:
        for model in FAMILY:
            shared = ["--model", f"random:{model}", "--tp", tp, "--batch", 1, 8]
            found += [part(f"decode-{model}-tp{tp}", 480, tp, "decode", *shared, 64, "--prompt-len", 128, 512),
                      part(f"prefill-{model}-tp{tp}", 240, tp, "prefill", *shared, "--prompt-len", 128, 512, 1000)]
    return [*found, *traces(ours, out, tps), cost, chapters]


def traces(ours, out: Path, tps: list[int]) -> list[Step]:
    """Timelines of both plans."""
    found = []
    for tp in tps:
        for plan in ("shipped", "as-drawn") if tp > 1 else ("shipped",):
            for phase, graph in (("prefill", []), ("decode", []), ("decode", ["--graph"])):
                name = "-".join([f"trace-tp{tp}", plan, phase, *(["graph"] if graph else [])])
                found.append(Step(name, ours("trace", "--model", "random:gpt2", "--tp", tp, "--plan", plan, "--phase",
                                             phase, "--batch", 8, "--prompt-len", 512, *graph, "--json", "--out",
                                             out / f"{name}.trace.json"), 120, tp))
    return found


def merge(out: Path) -> None:
    """Put the parts of each bench, one a model and TP size, into one file a machine, raw samples included."""
    parts = {}
    for path in sorted((out / "parts").glob("*/*/*.json")):
        parts.setdefault((path.parent.name, path.name), []).append(path)
    for paths in parts.values():
        raw = [p.parent / "raw" / p.name for p in paths]
        samples = None
        if all(r.exists() for r in raw):
            samples = [row["us"] for r in raw for row in json.loads(r.read_text())["rows"]]
        results.save(results.one_machine([results.load(p) for p in paths]), out / "results", samples)


def fit(out: Path) -> int:
    """Fit the cost model to each machine's folder that the benches left."""
    status = 0
    for folder in sorted((out / "results").glob("*/")):
        status |= subprocess.run([sys.executable, "-m", "tpgpt2_ref", "cost", "fit", str(folder), "--out",
                                  str(folder / "cost_model.json")], cwd=ROOT).returncode
    return status


def run(step: Step, out: Path, gpus: int) -> dict:
    """Run one step into its log; end it, and all it started, at its limit."""
    if step.gpus > gpus:
        return {"step": step.name, "result": f"left out: needs {step.gpus} GPUs", "seconds": 0.0}
    begin = time.monotonic()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    processes = []
    for part in range(1, step.parts + 1):
        name, more = (f"{step.name}-{part}", ["--part", f"{part}/{step.parts}"]) if step.parts > 1 else (step.name, [])
        with (out / f"{name}.log").open("w") as log, (out / f"{name}.out").open("w") as stdout:
            processes.append(subprocess.Popen([*step.argv, *more], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stdout,
                                              stderr=log, env=env, start_new_session=True))
    try:
        statuses = [process.wait(max(0.0, begin + step.limit - time.monotonic())) for process in processes]
        result = "ok" if not any(statuses) else f"failed with status {' '.join(map(str, statuses))}"
    except subprocess.TimeoutExpired:
        result = f"stopped after its {step.limit:.0f} s"
    finally:
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    return {"step": step.name, "result": result, "seconds": round(time.monotonic() - begin, 1)}


def stamp(out: Path, commit: str) -> None:
    """Name the commit in what was recorded, where the copy of the repository that ran has no git, or another's."""
    for path in (out / "results").glob("**/*.json"):
        path.write_text(re.sub(r'"commit": "[^"]*"', f'"commit": "{commit}"', path.read_text(), count=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for logs, results, traces and chapters")
    parser.add_argument("--only", help="steps, separated by commas; trace means every trace")
    parser.add_argument("--quick", action="store_true", help="the steps that tell most, with fewer sizes and models")
    parser.add_argument("--commit", help="the commit that this copy is of, where git does not know")
    parser.add_argument("--list", action="store_true", help="print the steps and stop")
    parser.add_argument("--fit", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    gpus, out = gpu_count(), (args.out or Path("gpu_run")).resolve()
    todo = steps(out, gpus, args.quick)
    if args.only:
        wanted = args.only.split(",")
        todo = [s for s in todo if any(s.name == w or s.name.startswith(f"{w}-") for w in wanted)]
        if not todo:
            parser.error(f"--only {args.only}: no such step; --list names them")
    if args.list:
        print("\n".join(f"{s.name:36}{s.gpus} GPU{'s' * (s.gpus > 1):2} <= {s.limit:.0f} s" for s in todo))
        return 0
    if args.out is None:
        parser.error("give --out FOLDER")
    if args.fit:
        return fit(out)
    out.mkdir(parents=True, exist_ok=True)
    table = []
    for step in todo:
        table.append(run(step, out, gpus))
        print(f"{step.name}: {table[-1]['result']} ({table[-1]['seconds']} s)", flush=True)
        if (out / "parts").is_dir():
            merge(out)  # after each step: what is measured is kept, whatever comes later
        if args.commit:
            stamp(out, args.commit)
    (out / "summary.json").write_text(json.dumps({"machine": results.machine_card(), "steps": table}, indent=1))
    print(f"\n{'step':36}{'seconds':>9}  result")
    print("\n".join(f"{row['step']:36}{row['seconds']:>9}  {row['result']}" for row in table))
    return int(any(not row["result"].startswith(("ok", "left out")) for row in table))


if __name__ == "__main__":
    sys.exit(main())

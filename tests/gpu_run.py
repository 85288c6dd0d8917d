"""Everything that wants GPUs, in one call: GPU tests, benches, traces, cost model, chapters.

    python tests/gpu_run.py --out FOLDER                 all that this machine's 1, 2 or 4 GPUs allow
    python tests/gpu_run.py --out FOLDER --only 'tests*,collectives'
    python tests/gpu_run.py --out FOLDER --quick         what tells most, with fewer sizes and models
    python tests/gpu_run.py --out FOLDER --gpus 2        a host of 4 GPUs as two machines of 2, side by side
    python tests/gpu_run.py --list                       the steps and their limits

Steps that need fewer GPUs than there are run side by side, each on GPUs of its own. Each has its own time limit, and
one that fails doesn't stop the others; --minutes limits them all. FOLDER gets each step's log,
`results/<machine>/*.json` as `book/results` wants them, traces and the chapters with their new outputs. The last
thing printed is a table of what worked. Exit status 1 if any step failed.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatch
from math import inf
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIDE_BY_SIDE = 4  # processes that share a GPU's tests: most of a test's time is a core's, compiling
BEGUN = "begun"  # folder of the tests that one of them has begun
FAMILY = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
# Two a doubling: the cost model is fitted to the powers of two and judged between them.
SIZES = ",".join(str(n) for k in range(8, 30) for n in (1 << k, 3 << k - 1)) + ",1G"
sys.path.insert(0, str(ROOT))

from tpgpt2_ref.errors import UserError  # noqa: E402
from tpgpt2_ref.parallel.launch import gpu_count  # noqa: E402
from tpgpt2_ref.recorded import results  # noqa: E402


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
        return [sys.executable, "-m", "pytest", "tpgpt2_ref", "-v", "-rs", "-p", "no:cacheprovider", "--durations=12",
                *argv]

    cost = Step("cost", [sys.executable, __file__, "--out", str(out), "--fit"], 120, 0, last=True)
    execute = [sys.executable, str(ROOT / "tests" / "execute_notebooks.py"), "--out", str(out / "chapters")]
    chapters = [Step(f"chapter-{path.stem}", [*execute, str(path)], 300, gpus)
                for path in sorted((ROOT / "book").glob("*.ipynb"))]

    def tests(*selected, limit):  # a step for those that need 4 GPUs, for those that need 2, and two for the others
        def shared(name, which, side_by_side):
            return Step(name, pytest("-m", which, "--needs", "1", "--share", str(out / BEGUN / name), *selected), limit,
                        max(1, gpus), side_by_side * max(1, gpus))

        return [*(Step(f"tests-{n}", pytest("-m", "gpus", "--needs", str(n), *selected), limit, n)
                  for n in reversed(tps[1:])),
                shared("tests-1", "gpu and not alone", SIDE_BY_SIDE), shared("tests-alone", "gpu and alone", 1)]

    if quick:
        found, last, both = [], ["--rung", "+pdl", "--no-peer", "--batch", 1, 8], ["--prompt-len", 128, 512]
        for tp in reversed(tps):  # what takes most GPUs first: the rest fills the gaps
            most = [2, 16, 32] if tp == gpus else []  # with few rows, much of a fit hangs on the draw
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
        for n in tps[1:3] or (2, 4):  # one rank's own part of n
            for model in ("gpt2", "gpt2-xl"):
                shared = ["--model", f"random:{model}", "--imagine", n]
                found += [part(f"decode-{model}-alone{n}", 90, 1, "decode", *shared, *last, 64, *both),
                          part(f"prefill-{model}-alone{n}", 60, 1, "prefill", *shared, "--batch", 1, 8, "--repeat", 10,
                               "--prompt-len", 128, 512, 1000)]
        for link in ("host memory", "sockets"):
            found.append(part(f"collectives-{link.split()[0]}", 120, 2, "collectives", "--tp", 2, "--link", link,
                              "--samples", 20, "--ops", "all_reduce,all_gather",
                              "--sizes", ",".join(str(1 << k) for k in range(10, 27))))
        some = tests("-k", "kernels or cuda_graph or timeline or trace or push or two_gpus or two_nccl or four",
                     limit=300)
        return [*found, *traces(ours, out, tps[-1:]), *some, *chapters, cost]
    found = [
        Step("doctor", ours("doctor"), 120),
        *tests(limit=900),
        Step("collectives", ours("bench", "collectives", "--link", "all", "--sizes", SIZES, "--rounds", 3, *keep), 900,
             max(2, gpus)),
        Step("attention", ours("bench", "attention", *keep), 600),
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


def merge(out: Path) -> None:
    """Put the parts of each bench, one a model and TP size, into one file a machine, raw samples included."""
    parts = {}
    for path in sorted((out / "parts").glob("*/*/*.json")):
        parts.setdefault((path.parent.name, path.name), []).append(path)
    for paths in parts.values():
        run = results.one_machine([results.load(p) for p in paths])
        try:
            samples = [us for path in paths for us in results.load_samples(path)]
        except UserError:  # a bench without, or a part that was ended between its two files
            samples = None
        results.save(run, out / "results", samples)


def merge_traces(out: Path) -> None:
    """Put the timelines into one file a machine: a row says which forward it is of. Of prefills with fused kernels, in
    one piece and in halves, a few layers go into `hidden`."""
    of = ("model", "dtype", "tp", "plan", "phase", "batch", "prompt_len", "graph", "backend")
    runs = {}
    for path in sorted(out.glob("trace-*.out")):
        try:
            said = json.loads(path.read_text())
        except ValueError:
            continue  # its step failed, or has not ended
        forward, rows = {k: said[k] for k in of} | {"model": said["model"].removeprefix("random:")}, said["rows"]
        name = "timeline"
        if (rung := said.get("rung")) in ("fused", "halves"):
            name, forward["rung"] = "hidden", rung
            rows = [r for r in rows if re.match(r"h\.[5-8]\.", r["layer"]) and r["kind"] != "instant"]
        when = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
        run = runs.setdefault((said["machine"]["slug"], name), results.Run(name, said["machine"], [], when))
        run.rows.extend(forward | {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
                        for row in rows)
    for run in runs.values():
        results.save(run, out / "results")


def fit(out: Path) -> int:
    """Fit the cost model to each machine's folder that the benches left."""
    status = 0
    for folder in sorted((out / "results").glob("*/")):
        status |= subprocess.run([sys.executable, "-m", "tpgpt2_ref", "cost", "fit", str(folder), "--out",
                                  str(folder / "cost_model.json")], cwd=ROOT).returncode
    return status


def run_all(todo: list[Step], out: Path, machines: list[list[str]], minutes: float = inf, after=None) -> list[dict]:
    """Run the steps in order, each as soon as the GPUs it needs are free: -> a row of what came of each.

    machines  GPUs as CUDA_VISIBLE_DEVICES names them, by machine: a step sees those of one, its own first
    after     called whenever a step has ended
    """
    end, free = time.monotonic() + 60 * minutes, [list(gpus) for gpus in machines]
    table, running, waiting = [], {}, list(todo)
    with ThreadPoolExecutor(len(todo) or 1) as pool:
        while waiting or running:
            for step in list(waiting):
                able = [m for m, gpus in enumerate(machines) if step.gpus <= len(gpus)]
                place = next((m for m in able if step.gpus <= len(free[m])), None)
                if not able or time.monotonic() > end:
                    table.append({"step": step.name, "result": f"left out: needs {step.gpus} GPUs" if not able else
                                  f"left out: the {minutes:g} minutes were over", "seconds": 0.0})
                elif place is None or step.last and (running or not all(s.last for s in waiting)):
                    continue
                else:
                    own = free[place][: step.gpus]
                    free[place] = free[place][step.gpus:]
                    seen = [*own, *(gpu for gpu in machines[place] if gpu not in own)]
                    running[pool.submit(run, step, out, seen, end)] = place, own
                waiting.remove(step)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                place, own = running.pop(future)
                free[place] = sorted([*free[place], *own], key=machines[place].index)
                table.append(future.result())
                print(f"{table[-1]['step']}: {table[-1]['result']} ({table[-1]['seconds']} s)", flush=True)
                if after:
                    after()
    return table


def run(step: Step, out: Path, gpus: list[str], end: float = inf) -> dict:
    """Run one step into its log, with these GPUs to see; end it, and all it started, at its limit or at `end`."""
    begin = time.monotonic()
    limit = min(step.limit, end - begin)
    threads = max(1, (os.cpu_count() or 1) // max(1, gpu_count(), step.parts))  # steps side by side share the cores
    env = {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": str(threads), **os.environ,
           "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    processes = []
    for part in range(step.parts):
        name, first = f"{step.name}-{part + 1}" if step.parts > 1 else step.name, part % max(1, step.gpus)
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join([*gpus[first:step.gpus], *gpus[:first], *gpus[step.gpus:]])
        with (out / f"{name}.log").open("w") as log, (out / f"{name}.out").open("w") as stdout:
            processes.append(subprocess.Popen(step.argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stdout,
                                              stderr=log, env=env, start_new_session=True))
    try:
        statuses = [process.wait(max(0.0, begin + limit - time.monotonic())) for process in processes]
        result = "ok" if not any(statuses) else f"failed with status {' '.join(map(str, statuses))}"
    except subprocess.TimeoutExpired:
        result = f"stopped after its {limit:.0f} s"
    finally:
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    return {"step": step.name, "result": result, "seconds": round(time.monotonic() - begin, 1),
            "gpus": ",".join(gpus[: step.gpus])}


def machines_of(size: int | None) -> list[list[str]]:
    """This host's GPUs, by index or as CUDA_VISIBLE_DEVICES names them, cut into machines of `size`."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = names if names != [""] else [str(i) for i in range(gpu_count())]
    size = size or max(1, len(gpus))
    return [gpus[i : i + size] for i in range(0, len(gpus) - size + 1, size)] or [gpus]


def stamp(out: Path, commit: str) -> None:
    """Name the commit in what was recorded, where the copy of the repository that ran has no git, or another's."""
    for path in (out / "results").glob("**/*.json"):
        path.write_text(re.sub(r'"commit": "[^"]*"', f'"commit": "{commit}"', path.read_text(), count=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for logs, results, traces and chapters")
    parser.add_argument("--only", help="steps, separated by commas, with * for any letters: 'tests*,*-tp4'")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of a machine (default: all; of 4 GPUs, 2 make two "
                        "machines, between which the steps are shared out)")
    parser.add_argument("--minutes", type=float, default=inf, metavar="M", help="end whatever runs after so long, and "
                        "leave the rest out")
    parser.add_argument("--quick", action="store_true", help="the steps that tell most, with fewer sizes and models")
    parser.add_argument("--commit", help="the commit that this copy is of, where git does not know")
    parser.add_argument("--list", action="store_true", help="print the steps and stop")
    parser.add_argument("--fit", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    machines, out = machines_of(args.gpus), (args.out or Path("gpu_run")).resolve()
    todo = steps(out, len(machines[0]), args.quick)
    if args.only:
        for wanted in args.only.split(","):
            if not any(fnmatch(s.name, wanted) for s in todo):
                parser.error(f"--only {wanted}: no such step; --list names them")
        todo = [s for s in todo if any(fnmatch(s.name, wanted) for wanted in args.only.split(","))]
    if args.list:
        print("\n".join(f"{s.name:36}{s.gpus} GPU{'s' * (s.gpus > 1):2} <= {s.limit:.0f} s" for s in todo))
        return 0
    if args.out is None:
        parser.error("give --out FOLDER")
    if args.fit:
        return fit(out)
    out.mkdir(parents=True, exist_ok=True)

    def keep():  # after each step: what is measured is kept, whatever comes later
        try:
            merge(out)
            merge_traces(out)
            if args.commit:
                stamp(out, args.commit)
        except UserError as e:
            print(f"not put together: {e}", file=sys.stderr)

    shutil.rmtree(out / BEGUN, ignore_errors=True)  # of a run that was cut off
    table = run_all(todo, out, machines, args.minutes, keep)
    shutil.rmtree(out / BEGUN, ignore_errors=True)
    (out / "summary.json").write_text(json.dumps({"machine": results.machine_card(), "steps": table}, indent=1))
    print(f"\n{'step':36}{'seconds':>9}  result")
    print("\n".join(f"{row['step']:36}{row['seconds']:>9}  {row['result']}" for row in table))
    return int(any(not row["result"].startswith(("ok", "left out")) for row in table))


if __name__ == "__main__":
    sys.exit(main())

"""Everything that wants GPUs, in one call: GPU tests, benches, traces, cost model, chapters.

    python tests/gpu_run.py --out FOLDER                 all that this machine's 1, 2, 4 or 8 GPUs allow
    python tests/gpu_run.py --out FOLDER --only 'tests*,collectives'
    python tests/gpu_run.py --out FOLDER --quick         what tells most, with fewer sizes and models
    python tests/gpu_run.py --out FOLDER --gpus 2        a host of 4 GPUs as two machines of 2, side by side
    python tests/gpu_run.py --list --gpus 8              the steps of such a machine and their limits, on any machine

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
from datetime import datetime, timezone
from fnmatch import fnmatch
from math import inf
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.gpu_steps import BEGUN, Step, steps  # noqa: E402
from tpgpt2_ref.errors import UserError  # noqa: E402
from tpgpt2_ref.parallel.launch import gpu_count  # noqa: E402
from tpgpt2_ref.recorded import results  # noqa: E402


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
    todo = steps(out, args.gpus or len(machines[0]) if args.list else len(machines[0]), args.quick)
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

"""*Measure here*: one point of an explorer on the reader's own ranks, by the command that recorded the book's rows.

    measurement = Measurement("collective", {"world": 2, "bytes": 1536, ...}, tell)
    measurement.stop()                              nothing is left running

Its ranks are processes of their own. They end with it, and with this process however it ends: a helper between the two
waits for the end of its standard input and then kills its whole process group.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from ..errors import UserError
from .data import half_layer

MEASURES = ("collective", "timeline", "roofline", "cost")
LINKS = {"": "as is", "host-memory": "host memory", "sockets": "sockets"}
NEW_TOKENS = 128  # of a decode run, whose mean step then has half of them more in its cache


def arguments(name: str, point: dict) -> list[str]:
    """The command that measures a point of `collective`, `timeline` or `cost`. Raises UserError if none does."""
    if name == "collective":
        return ["bench", "collectives", "--ops", "all_reduce", "--tp", str(point["world"]), "--sizes",
                str(point["bytes"]), "--json"]
    model = point.get("model") or point["gpt2"]
    common = ["--model", model if ":" in model else f"random:{model}", "--tp", str(point["tp"])]
    if name == "timeline":
        return ["trace", *common, "--plan", point["plan"], "--phase", point["phase"], "--batch", str(point["batch"]),
                "--prompt-len", str(point["prompt_len"]), *["--graph"] * point["graph"], "--json"]
    if name != "cost":
        raise UserError(f"{name} has nothing to measure; {', '.join(MEASURES)} have")
    if point.get("link"):
        raise UserError("a step is measured over this machine's own link: set Link to that")
    common += ["--batch", str(point["batch"]), "--sum", point.get("sum") or "auto", "--no-peer", "--json"]
    if point["tokens"] > 1:
        return ["bench", "prefill", *common, "--prompt-len", str(point["tokens"])]
    prompt = point["context"] - NEW_TOKENS // 2
    if prompt < 1:
        raise UserError(f"a decode run adds {NEW_TOKENS} tokens: choose at least {NEW_TOKENS // 2 + 1} tokens")
    return ["bench", "decode", *common, "--prompt-len", str(prompt), "--new-tokens", str(NEW_TOKENS)]


def found(name: str, point: dict, result: dict) -> dict:
    """What a finished command's JSON adds to the explorer: {"dots": [...]} or {"timeline": ...}."""
    if name == "timeline":
        about = {k: result[k] for k in ("model", "tp", "plan", "phase", "graph", "batch", "prompt_len", "backend")}
        return {"timeline": {"label": label(result["machine"]), "here": True,
                             **about, "model": about["model"].removeprefix("random:"),
                             **half_layer(result["rows"], result["tp"])}}
    rows = [{**row, "here": True} for row in result["rows"]]
    if name == "cost":
        us = "us_per_step_median" if point["tokens"] == 1 else "wall_us_median"
        best = min(rows, key=lambda row: row[us])
        return {"dots": [{**{k: point[k] for k in ("gpt2", "tp", "batch", "tokens", "context")}, "us": best[us],
                          "sum": best["sum"], "rung": best["rung"], "here": True}]}
    if name == "collective":
        in_graph = [row for row in rows if row["graph"]]
        rows = [row for row in in_graph or rows if not row["path"].startswith("bare ")]
    return {"dots": rows}


def label(machine: dict) -> str:
    return f"here, {machine['count']}x {machine['device']}"


class Measurement:
    """One running measurement. tell(message) is called from another thread: {"progress": text} while it runs, then
    {"done": what `found` gives} or {"failed": one line}."""

    def __init__(self, name: str, point: dict, tell: Callable[[dict], None]):
        self.name, self.point, self.tell, self.stopped = name, point, tell, False
        if name != "roofline":
            arguments(name, point)  # a mistake is raised before anything is started
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, name, json.dumps(point)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End it and all its ranks; `tell` is not called again."""
        self.stopped = True
        try:
            self.process.stdin.close()  # the helper kills its group
        except OSError:
            pass
        self.process.wait()
        if threading.current_thread() is not self.thread:
            self.thread.join(timeout=5)  # until nobody holds the other end of its pipes

    def _follow(self) -> None:
        out: list[str] = []
        reader = threading.Thread(target=lambda: out.append(self.process.stdout.read()), daemon=True)
        reader.start()
        last, rows = "", 0
        for line in self.process.stderr:
            if not (line := line.strip()):
                continue
            if line.startswith('{"row"'):
                rows += 1
                self._say({"progress": f"{rows} row{'s' * (rows > 1)} measured"})
            else:
                last = line
                self._say({"progress": line[:200]})
        status = self.process.wait()
        reader.join()
        if status:
            self._say({"failed": last or f"it ended with status {status}"})
        else:
            try:
                self._say({"done": found(self.name, self.point, json.loads(out[0]))})
            except (ValueError, KeyError) as e:
                self._say({"failed": f"what was measured can't be read: {e!r}"})

    def _say(self, message: dict) -> None:
        if not self.stopped:
            self.tell(message)


def attention_rows(point: dict) -> dict:
    """One shape of attention through one backend, as `bench attention` measures it."""
    from ..bench.attention import sweep

    shape = tuple(point[k] for k in ("phase", "batch", "seq_len", "head_size", "dtype"))
    rows = [row for row, _ in sweep([point["backend"]], shapes=[shape])]
    if not rows:
        raise UserError(f"{point['backend']} does not run here: ask `python -m tpgpt2_ref select --force "
                        f"{point['backend']}` why")
    return {"rows": rows}


def helper(name: str, point: dict) -> int:
    """Measure, in a process whose group ends when its standard input does."""
    def end_with_parent():
        sys.stdin.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if name != "roofline":
        return subprocess.run([sys.executable, "-m", "tpgpt2_ref", *arguments(name, point)],
                              stdin=subprocess.DEVNULL).returncode
    try:
        print(json.dumps(attention_rows(point)))
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    status = helper(sys.argv[1], json.loads(sys.argv[2]))
    sys.stdout.flush()
    os._exit(status)  # the thread that reads stdin would hold the interpreter's end

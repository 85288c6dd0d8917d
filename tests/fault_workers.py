"""Several tries of the fault campaign side by side: each worker is a process with ranks of its own, on the same GPUs.

A worker takes one try after the other, so its interrupts and its dying ranks are its own. One that does not answer in
time is killed, which counts as a try that did not recover, and another takes its place.
"""
from __future__ import annotations

import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Iterator

LIMIT = 150.0  # seconds for one try


def side_by_side(units: list[str], workers: int, begin, end: float) -> Iterator[tuple[str, dict]]:
    """Yield (unit, result) as they come; units that no worker has taken by `end` are left out.

    begin  begin(worker's number) -> a function from a unit to its result, called in the worker's process
    """
    waiting, results = queue.Queue(), queue.Queue()
    for unit in units:
        waiting.put(unit)
    threads = [threading.Thread(target=_lead, args=(number, begin, waiting, results, end), daemon=True)
               for number in range(workers)]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads) or not results.empty():
        try:
            yield results.get(timeout=0.5)
        except queue.Empty:
            pass


def _lead(number: int, begin, waiting: queue.Queue, results: queue.Queue, end: float) -> None:
    """One worker's lead, a thread here: hand it tries until none is left or the time is up."""
    spawn, worker, line = multiprocessing.get_context("spawn"), None, None
    while time.monotonic() < end:
        try:
            unit = waiting.get_nowait()
        except queue.Empty:
            break
        if worker is None:
            line, theirs = spawn.Pipe()
            worker = spawn.Process(target=_work, args=(number, begin, theirs), daemon=True)
            worker.start()
            theirs.close()
        line.send(unit)
        began = time.monotonic()
        try:
            result = line.recv() if line.poll(LIMIT) else None
        except EOFError:
            result = None
        if result is None:
            seconds = time.monotonic() - began
            result = {"recovered": False, "said": False, "message_s": seconds, "right_s": None,
                      "failure": f"{unit}: its worker {'died' if seconds < LIMIT else 'did not answer'}"}
            worker.kill()
            worker.join()
            worker = None
        results.put((unit, result))
    if worker is not None:
        line.close()
        worker.join(20)
        worker.kill()


def _work(number: int, begin, line) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = begin(number)
    while True:
        try:
            unit = line.recv()
        except KeyboardInterrupt:  # one that came late
            continue
        except EOFError:
            return work(None)
        line.send(work(unit))

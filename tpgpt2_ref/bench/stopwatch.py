"""The one stopwatch: every time that this package states was taken here.

    microseconds(run, device)   one run: between two CUDA events, or on the host's clock where there is no GPU
    host_microseconds(run)      one run as the host sees it; `run` must wait for the GPU itself if that is wanted
    gpu_microseconds(run)       what the GPU alone works on, however slow the host enqueues it
    in_turn(runs, ...)          samples of several runs, one of each after the other: clocks and heat treat them alike
    captured(run, times)        the run, so many times in a row, as one CUDA graph
    spread(samples)             median, p10 and p90, as every row of results has them
"""
from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ..engine.graph import CapturedStep
from ..recorded.samples import spread

__all__ = ["captured", "gpu_microseconds", "host_microseconds", "in_turn", "microseconds", "spread"]
SLEEP_CYCLES = 100_000_000  # some 50 ms of a GPU, in which the host enqueues a whole prefill


def microseconds(run: Callable, device: torch.device) -> float:
    """Of one run, after everything before it has ended."""
    if device.type != "cuda":
        return host_microseconds(run)
    torch.cuda.synchronize(device)
    return _between(_marked(run))


def host_microseconds(run: Callable) -> float:
    """Of one run on the host's clock."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e6


def gpu_microseconds(run: Callable) -> float:
    """Of one run behind a kernel that sleeps, so that the GPU never waits for the host."""
    torch.cuda._sleep(SLEEP_CYCLES)
    return _between(_marked(run))


def in_turn(runs: list[Callable], device: torch.device, samples: int) -> list[list[float]]:
    """Microseconds of each run's samples. On a GPU all are enqueued before the first is waited for."""
    if device.type != "cuda":
        rounds = [[host_microseconds(run) for run in runs] for _ in range(samples)]
    else:
        rounds = [[_between(pair) for pair in marked]
                  for marked in [[_marked(run) for run in runs] for _ in range(samples)]]
    return [list(of_run) for of_run in zip(*rounds)]


def captured(run: Callable, times: int = 1, warmups: int = 2) -> Callable[[], None]:
    """A call that replays `times` runs in a row, recorded in one CUDA graph after so many warm ones."""
    def in_a_row():
        for _ in range(times):
            run()

    with torch.cuda.stream(torch.cuda.current_stream()):  # which a capture that fails would not give back
        return CapturedStep(in_a_row, warmups=warmups).replay


def _marked(run: Callable) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    return start, end


def _between(marks: tuple[torch.cuda.Event, torch.cuda.Event]) -> float:
    """Microseconds, once the second has happened."""
    marks[1].synchronize()
    return marks[0].elapsed_time(marks[1]) * 1e3

"""What a run leaves behind: one row for each collective, in the order in which they ran, and the stages around them.

    world.trace = Trace()        from now on this world records; None again: it stops
    ... run, or capture and replay a CUDA graph ...
    world.trace.finish()         the rows, with their times

On GPUs a time is the distance of two CUDA events, also inside a CUDA graph: there the events are external ones,
every replay records them anew, and `finish` reads the last replay. On CPUs it is the clock `time.perf_counter`.
The ground floor: it imports nothing of the package, so that everything may write to it.
A World without a trace pays one `is None` a collective.
"""
from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

OPS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")


@dataclass
class Span:
    """Something that took time on one rank."""

    layer: str  # the module that ran or called, by its name in the checkpoint
    part: str = field(default="", kw_only=True)  # of a batch that runs in halves: "A" or "B"
    start_us: float | None = field(default=None, kw_only=True)  # since the trace's first span; set by `finish`
    microseconds: float | None = field(default=None, kw_only=True)

    @property
    def end_us(self) -> float:
        return self.start_us + self.microseconds


@dataclass
class Collective(Span):
    """One collective as one rank saw it."""

    op: str  # one of OPS
    bytes: int  # of this rank's input
    dtype: str
    path: str  # who moved it: nccl, gloo, one_shot, ...
    fused: str | None = None  # what else one kernel does in the same time: no time to set beside a bare collective's


@dataclass
class Trace:
    """Collects `Collective` rows and stages. Pass it to a World; call `finish()` before reading times."""

    rows: list[Collective] = field(default_factory=list)
    stages: list[Span] = field(default_factory=list)
    part: str = ""  # the half of the batch that runs, for the spans to come
    marks: list[tuple] = field(default_factory=list, repr=False)  # (span, start, end), as the clock gave them

    @contextmanager
    def collective(self, op, tensor, path, layer):
        row = Collective(layer, op, tensor.numel() * tensor.element_size(),
                         str(tensor.dtype).removeprefix("torch."), path, part=self.part)
        self.rows.append(row)
        start = now(tensor.is_cuda)
        yield row
        self.marks.append((row, start, now(tensor.is_cuda)))

    def stage(self, layer, start, end):
        """Add a stage between two results of `now`."""
        self.stages.append(Span(layer, part=self.part))
        self.marks.append((self.stages[-1], start, end))

    def finish(self) -> list[Collective]:
        """Wait for the GPU and fill in every span's `start_us` and `microseconds`. May be called again."""
        if self.marks and not isinstance(self.marks[0][1], int):
            import torch

            torch.cuda.synchronize()
        for span, start, end in self.marks:
            span.start_us, span.microseconds = distance_us(self.marks[0][1], start), distance_us(start, end)
        first = min((span.start_us for span, _, _ in self.marks), default=0.0)
        for span, _, _ in self.marks:
            span.start_us -= first
        return self.rows

    def counts(self) -> dict[str, int]:
        """{op: number of calls}, as the command line reports it."""
        return dict(Counter(r.op for r in self.rows))


def now(cuda: bool):
    """A point in time: on the current stream, or of this host's clock in nanoseconds."""
    if not cuda:
        return time.perf_counter_ns()
    import torch  # here, because rows of results are read without it

    event = torch.cuda.Event(enable_timing=True, external=True)
    event.record()
    return event


def distance_us(start, end) -> float:
    return (end - start) / 1e3 if isinstance(start, int) else start.elapsed_time(end) * 1e3

"""A step recorded once in a CUDA graph, with its collectives, and replayed: one launch instead of hundreds."""
from __future__ import annotations

import sys
from typing import Any, Callable

import torch


class CaptureError(RuntimeError):
    """A step can't be captured on this machine; it can run without a graph."""


class CapturedStep:
    """A step without arguments, which reads and writes tensors that stay where they are.

    pool  another capture's memory, which this one may use too if they never run at once
    It runs a few times before it is captured, so that kernels are compiled and NCCL's channels are open: the tensors
    must be in a state in which that does no harm. Drop it before the process group closes.
    """

    def __init__(self, step: Callable[[], None], pool=None, warmups: int = 2):
        try:
            self._capture(step, pool, warmups)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # Triton's own errors come in many types
            raise CaptureError(f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}") from e

    def _capture(self, step, pool, warmups):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warmups):
                step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            step()
        self.pool = self.graph.pool()
        self.step = step  # the graph holds addresses alone: what lies there is whatever the step holds

    def replay(self) -> None:
        self.graph.replay()


class PlainStep:
    """The same without a graph: each replay runs the step. The engine's graphs are then code for any machine."""

    def __init__(self, step: Callable[[], None], pool=None):
        self.replay, self.pool = step, pool


class GraphedPart:
    """A part of the engine that runs as CUDA graphs until it can't: the one place that decides, and that says so.

    what    "decoding" or "prefilling"
    why_not  why graphs can't be had, or None
    """

    def __init__(self, what: str, why_not: str | None):
        self.what, self.why_not = what, why_not

    def run(self, call: Callable[[], Any]) -> Any:
        """What `call` returns, which captures steps as it needs them; None where graphs can't be had."""
        if self.why_not is not None:
            return None
        try:
            return call()
        except CaptureError as e:
            self.why_not = f"a step could not be captured in a CUDA graph ({e})"
            print(f"{self.what} without CUDA graphs: {self.why_not}", file=sys.stderr)
            return None

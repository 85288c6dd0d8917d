"""A decode step recorded once in a CUDA graph, with its collectives, and replayed: one launch instead of hundreds."""
from __future__ import annotations

from typing import Callable

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
        self.pool, self.replay = self.graph.pool(), self.graph.replay

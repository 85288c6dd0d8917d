"""What a run leaves behind: one row for each collective, in the order in which they ran.

The ground floor: it imports nothing of the package, so that everything may write to it.
A World without a trace pays one `is None` a collective.
"""
from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Collective:
    """One collective as one rank saw it."""

    op: str  # all_reduce, all_gather, reduce_scatter, broadcast
    bytes: int  # of this rank's input
    dtype: str
    path: str  # who moved it: nccl, gloo, one_shot, ...
    layer: str  # the module that called, by its name in the checkpoint
    microseconds: float | None = None  # filled in by `Trace.finish`


@dataclass
class Trace:
    """Collects `Collective` rows. Pass it to a World; call `finish()` before reading times."""

    rows: list[Collective] = field(default_factory=list)

    @contextmanager
    def collective(self, op, tensor, path, layer):
        self.rows.append(Collective(op, tensor.numel() * tensor.element_size(),
                                    str(tensor.dtype).removeprefix("torch."), path, layer))
        yield

    def finish(self) -> list[Collective]:
        return self.rows

    def counts(self) -> dict[str, int]:
        """{op: number of calls}, as the command line reports it."""
        return dict(Counter(r.op for r in self.rows))

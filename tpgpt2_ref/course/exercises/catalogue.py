"""The exercises, in the order of the chapters they belong to. Imports no torch: a list is read without running any."""
from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from ...errors import UserError

NEEDS = {"nothing": "plain Python", "torch": "tensors, in this process", "ranks": "ranks: yours, or CPU ranks"}


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue; the rest is in `tasks/`, in the file of that name."""

    name: str
    chapter: str  # the notebook's stem
    needs: str  # a key of NEEDS
    title: str

    @property
    def function(self) -> str:
        """What the reader's function is called."""
        return self.name.replace("-", "_")

    @property
    def task(self):
        """The module with the task's text, its start, solution, mistakes and cases."""
        return import_module(f".tasks.{self.function}", __package__)


CATALOGUE = (
    Entry("padded-rows", "quickstart", "nothing", "How many rows has the vocabulary on n ranks?"),
    Entry("bias-once", "why_split", "ranks", "Add the bias once"),
    Entry("parallel-block", "why_split", "ranks", "Two branches, one sum"),
    Entry("pick-backend", "backend_selection", "nothing", "Pick the kernel for a T4, heads of 80, fp32"),
    Entry("qkv-slice", "qkv_split", "torch", "Cut the fused QKV matrix"),
    Entry("odd-heads", "qkv_split", "nothing", "Deal 25 heads to 2 ranks"),
    Entry("vocab-lookup", "why_split", "ranks", "Look a token up in a vocabulary that is cut"),
    Entry("all-gather", "collectives", "ranks", "An all-gather out of sends"),
    Entry("ring-all-reduce", "collectives", "ranks", "A ring all-reduce out of sends"),
    Entry("one-shot", "push", "ranks", "A one-shot all-reduce in shared memory"),
    Entry("late-rank", "timeline", "nothing", "Which rank was late?"),
    Entry("attention-floor", "decision_matrix", "nothing", "How fast can attention be?"),
    Entry("alpha-beta", "links", "nothing", "Alpha and beta by hand"),
    Entry("busbw", "links", "nothing", "What a link carries: busbw"),
    Entry("forward-bytes", "cost_analysis", "nothing", "The bytes of a forward"),
    Entry("break-even", "cost_analysis", "nothing", "From how many layers does a second GPU pay?"),
    Entry("largest-batch", "decode", "nothing", "The largest batch that fits"),
    Entry("decode-attention", "decode", "torch", "One token's attention over a paged cache"),
    Entry("kv-shards", "decode", "ranks", "Attention over a context that is cut"),
    Entry("first-mismatch", "hangs", "nothing", "Where did the ranks part?"),
)


def find(name: str) -> Entry:
    for entry in CATALOGUE:
        if entry.name == name:
            return entry
    raise UserError(f"no exercise {name!r}; there are: {', '.join(e.name for e in CATALOGUE)}")

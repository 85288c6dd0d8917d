"""The exercises, in the order of the chapters they belong to. Imports no torch: a list is read without running any."""
from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from ...errors import UserError

NEEDS = {"nothing": "plain Python", "torch": "tensors, in this process", "ranks": "ranks: yours, or CPU ranks"}

TITLES = {  # of the chapters
    "quickstart": "Quickstart: does it run here?",
    "why_split": "Why may a matrix be cut?",
    "backend_selection": "Diagram 1: which kernel runs?",
    "qkv_split": "Diagram 2: who holds what?",
    "collectives": "Diagram 3: what must be said, and in how many steps?",
    "push": "How does one beat NCCL?",
    "timeline": "Diagram 4: where does the time go?",
    "decision_matrix": "Diagram 5: what can each kernel do, and how fast is it?",
    "links": "Diagram 6: what is a link worth?",
    "cost_analysis": "What does it cost, and does a second GPU pay?",
    "decode": "What is a token made of?",
    "hangs": "Why did it hang, and where?",
}


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

"""How an answer is judged: play it beside the solution on fresh inputs, and if they differ, find the mistake that does
exactly the same.

A task is a module of `tasks/`. It has

    its docstring              the task, in Markdown
    start, solution            two functions; what the reader sees of them is their source
    MISTAKES                   {a function that is wrong: the words that say why}
    cases(draw, n)             inputs, as dicts in the order of the function's arguments; n ranks
    play(answer, case, tools)  where an answer needs more than its case
    cost(log)                  where messages count: a number that the answer must not exceed
    HINTS, RIGHT               what folds out; what is worth saying once it is right
    TOLERANCE                  relative, 1e-4 where it is not set
"""
from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field


class Draw:
    """Fresh random inputs: the same on every rank, for one seed."""

    def __init__(self, seed: int, device: str = "cpu"):
        self.random, self.seed, self.device = random.Random(seed), seed, device

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def number(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    def choice(self, of):
        return self.random.choice(of)

    def tensor(self, *shape: int):
        """Standard normal fp32; drawn on the CPU, so that every device gets the same."""
        import torch

        generator = torch.Generator().manual_seed(self.random.getrandbits(40))
        return torch.randn(*shape, generator=generator).to(self.device)


@dataclass
class Alone:
    """The tools of an answer that needs no ranks."""

    rank: int = 0
    n: int = 1
    log: list = field(default_factory=list)  # (message, bytes that leave this rank), in order

    def gather(self, value) -> list:
        return [value]


def judge(task, answer, seed: int, tools, device: str = "cpu") -> str | None:
    """None if the answer is right, otherwise what is wrong. On ranks every rank calls this, and hears the same."""
    cases = list(task.cases(Draw(seed, device), tools.n))
    found = [outcome(task, answer, case, tools) for case in cases]
    right = [outcome(task, task.solution, case, tools) for case in cases]
    bad = [i for i in range(len(cases)) if not all(tools.gather(good(found[i], right[i], task)))]
    if not bad:
        return None
    case, like = cases[bad[0]], None
    for mistake, words in task.MISTAKES.items():
        agrees = [all(tools.gather(same(f, outcome(task, mistake, c, tools), task))) for f, c in zip(found, cases)]
        if all(agrees) or agrees[bad[0]] and like is None:
            like = words
        if all(agrees):
            break
    if like is not None:
        return like.format(**{"n": tools.n, **case})
    texts = tools.gather(difference(found[bad[0]], right[bad[0]], case, task))
    return next((t if tools.n == 1 else f"Rank {r}: {t}" for r, t in enumerate(texts) if t), None)


def outcome(task, answer, case: dict, tools) -> tuple:
    """(what the answer returned, what its messages cost), on inputs of its own to spoil."""
    tools.log.clear()
    case = copy.deepcopy(case)
    play = getattr(task, "play", lambda answer, case, tools: answer(*case.values()))
    value = play(answer, case, tools)
    return value, task.cost(tools.log) if hasattr(task, "cost") else 0


def same(a: tuple, b: tuple, task) -> bool:
    return a[1] == b[1] and equal(a[0], b[0], getattr(task, "TOLERANCE", 1e-4))


def good(found: tuple, right: tuple, task) -> bool:
    return found[1] <= right[1] and equal(found[0], right[0], getattr(task, "TOLERANCE", 1e-4))


def equal(a, b, tolerance: float) -> bool:
    """Whether two results are the same, up to rounding."""
    if is_tensor(b):
        if not is_tensor(a) or a.shape != b.shape:
            return False
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        near = (a - b).abs() <= tolerance * b.abs().clamp(min=1)
        return bool((near | (a == b) | a.isnan() & b.isnan()).all())
    if isinstance(b, (tuple, list)):
        return isinstance(a, (tuple, list)) and len(a) == len(b) and all(equal(x, y, tolerance) for x, y in zip(a, b))
    if isinstance(b, int):
        tolerance = 0
    if is_number(b):
        a = a.item() if hasattr(a, "item") and (not is_tensor(a) or a.numel() == 1) else a  # torch's numbers, numpy's
        return is_number(a) and (a == b or abs(a - b) <= tolerance * abs(b))
    return type(a) is type(b) and a == b


def difference(found, right, case: dict, task) -> str | None:
    """What is wrong with a result that no known mistake gives."""
    (a, cost), (b, least) = found, right
    if a is None and b is not None:
        return "it returns None. The last line must be `return` and the result."
    if equal(a, b, getattr(task, "TOLERANCE", 1e-4)):
        dear = f"the numbers are right, but its messages cost {cost:,} where {least:,} are enough."
        return dear if cost > least else None
    for name, value in case.items():
        if is_tensor(value) and equal(a, value, 0) and value.numel():
            return f"it gives back its input `{name}` unchanged."
    if is_tensor(b):
        if not is_tensor(a):
            return f"it returns {describe(a)}, not a tensor of shape {tuple(b.shape)}."
        if a.shape != b.shape:
            return f"its shape is {tuple(a.shape)}; it should be {tuple(b.shape)}."
        if not a.double().isfinite().all():
            return "it holds inf or nan: somewhere you divide by zero, or take the exponential of a large number."
        if not a.any():
            return "it is all zeros."
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        wrong = (a - b).abs() > 1e-4 * b.abs().clamp(min=1)
        at = tuple(int(i) for i in wrong.nonzero()[0])
        return (f"{int(wrong.sum())} of {b.numel()} numbers differ from the right ones, the first at index {at}: "
                f"{a[at]:.4g}, where {b[at]:.4g} is right.")
    given = ", ".join(f"{k} = {v:,.6g}" if is_number(v) else f"{k} = {v!r}" for k, v in case.items()
                      if not is_tensor(v) and len(repr(v)) < 60)
    ratio = f" That is {a / b:.3g} times the right answer." if is_number(a) and is_number(b) and b else ""
    return f"{f'for {given} ' if given else ''}it gives {describe(a)}, which is not right.{ratio}"


def describe(value) -> str:
    if is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{value:,.6g}" if is_number(value) else f"{value!r}"[:80]


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_tensor(value) -> bool:
    return hasattr(value, "numel") and hasattr(value, "shape")

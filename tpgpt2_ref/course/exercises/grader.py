"""`check(name, answer)`: right, or what is wrong and why.

Inputs are fresh on every try, drawn from the exercise's name and the number of tries. An answer that never returns is
ended at its deadline. What is about ranks runs on ranks: the notebook's own, if it has started some, otherwise CPU
ranks that are kept for the next check.
"""
from __future__ import annotations

import ast
import contextlib
import inspect
import io
import signal
import textwrap
import threading
import zlib
from functools import cache
from html import escape

from ...errors import RankError, UserError
from . import progress
from .catalogue import find
from .judge import Alone, judge

LEAST_RANKS = 3  # with two, "the other rank" and "the next rank" are the same, and many mistakes don't show


class Verdict:
    """What `check` says. The last line of a cell shows it."""

    def __init__(self, right: bool, message: str):
        self.right, self.message = right, message

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'✓ Right.' if self.right else '○ Not yet.'} {self.message}".strip()

    def _repr_html_(self) -> str:
        head, colour = ("✓ Right.", "var(--tp-right, green)") if self.right else ("○ Not yet.", "var(--tp-quiet, gray)")
        return (f'<div role="status" style="border-left: 4px solid {colour}; padding: 0.2em 0.8em">'
                f"<strong>{head}</strong> {escape(self.message)}</div>")


class Late(BaseException):
    """The deadline. No Exception: an answer that catches everything must not catch this."""


def check(name: str, answer, ranks=None, deadline: float = 20.0) -> Verdict:
    """Judge an answer: a function, or a value where the task asks for one.

    ranks     `Ranks` to run on; None: the notebook's own, or CPU ranks of the grader's
    deadline  seconds for the answer
    Raises UserError for an unknown name. A wrong answer raises nothing.
    """
    find(name)
    if unwritten(answer):
        return Verdict(False, "The starting cell waits for your lines. The hints above fold out.")
    said = verdict(name, answer, ranks, deadline, zlib.crc32(f"{name}:{progress.tries(name)}".encode()))
    progress.attempt(name, said.right)
    return said


def verdict(name: str, answer, ranks=None, deadline: float = 20.0, seed: int = 0) -> Verdict:
    """What `check` says, with nothing kept."""
    entry = find(name)
    try:
        message = _judge(entry, answer, seed, ranks, deadline)
    except Late:
        message = f"It did not return within {deadline:g} s: does a loop never end?"
    if message is None:
        return Verdict(True, " ".join(filter(None, [entry.task.RIGHT, _speed(entry, answer, ranks)])))
    return Verdict(False, message[:1].upper() + message[1:])


def _judge(entry, answer, seed: int, ranks, deadline: float) -> str | None:
    task = entry.task
    if hasattr(task, "value"):
        return task.value(answer)
    if not callable(answer):
        return f"the answer is a function, `{entry.function}`: hand over its name without calling it."
    wants, gets = len(inspect.signature(task.start).parameters), _takes(answer)
    if gets is not None and wants != gets:
        return f"the function takes {gets} arguments; it is called with {wants}, as in the starting cell."
    if entry.needs == "ranks":
        return _judge_on_ranks(entry, answer, seed, ranks, deadline)
    try:
        with time_limit(deadline):
            return judge(task, answer, seed, Alone())
    except Exception as e:
        return f"it raises {type(e).__name__}: {e}"


def _judge_on_ranks(entry, answer, seed: int, ranks, deadline: float) -> str | None:
    text = source(answer)
    ranks = ranks or started_ranks() or own_ranks(LEAST_RANKS)
    rounds = [ranks] if ranks.size > 1 else []
    if ranks.size < LEAST_RANKS:
        rounds.append(own_ranks(LEAST_RANKS))
    for ranks in rounds:
        asked = (entry.name, text, answer.__name__, seed)
        code = f"__import__('tpgpt2_ref.course.exercises.on_rank', fromlist=['_']).judge_on_rank(*{asked!r}, world)"
        try:
            message = ranks.get(code, timeout=deadline)[0]
        except RankError as e:
            return _raised(e, deadline)
        if message is not None:
            return message
    return None


def _raised(e: RankError, deadline: float) -> str:
    """What a reader should hear of ranks that raised, or hung."""
    for rank, error in getattr(e, "by_rank", {}).items():
        what = f"on rank {rank} it raises {error['ename']}: {error['evalue']}"
        if error["ename"] == "NameError":
            return (f"{what}. The function runs on the ranks, where only torch, F and math are known: put imports and "
                    "helpers inside it.")
        return what
    return (f"it did not return within {deadline:g} s. A rank waits for a message that nobody sends, or a loop never "
            f"ends. {e}")


def _speed(entry, answer, ranks) -> str:
    """The answer's time beside the speed of light, where the task has one and there is a GPU."""
    if not hasattr(entry.task, "speed"):
        return ""
    if entry.needs != "ranks":
        from ...parallel.launch import gpu_count

        return entry.task.speed(answer) if gpu_count() else ""
    ranks = ranks or started_ranks()
    if ranks is None or ranks.device != "cuda" or ranks.share_gpu:
        return ""
    asked = (entry.name, source(answer), answer.__name__)
    code = f"__import__('tpgpt2_ref.course.exercises.on_rank', fromlist=['_']).time_on_rank(*{asked!r}, world)"
    try:
        return entry.task.show_speed(ranks.get(code, timeout=120))
    except RankError as e:
        return f"It could not be timed: {e}"


def source(answer) -> str:
    """A function's own text, from a file or a notebook's cell."""
    try:
        return textwrap.dedent(inspect.getsource(answer))
    except (OSError, TypeError) as e:
        raise UserError(f"cannot read the source of {answer!r}: define it with `def` in a cell of its own") from e


def unwritten(answer) -> bool:
    """Whether it is the starting cell still: Ellipsis, or a body of nothing but comments and `...`."""
    if answer is ...:
        return True
    with contextlib.suppress(OSError, TypeError, SyntaxError):
        [function] = ast.parse(textwrap.dedent(inspect.getsource(answer))).body
        return isinstance(function, ast.FunctionDef) and all(
            isinstance(line, ast.Pass) or isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
            for line in function.body)
    return False


def _takes(answer) -> int | None:
    """How many arguments a function takes; None if that is up to it."""
    try:
        kinds = inspect.signature(answer).parameters.values()
    except (TypeError, ValueError):
        return None
    return None if any(p.kind is p.VAR_POSITIONAL or p.default is not p.empty for p in kinds) else len(kinds)


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raise Late in this thread after so long. Only the main thread can be interrupted; others run without limit."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_):
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    rest = signal.setitimer(signal.ITIMER_REAL, seconds)  # whoever else has set the timer gets it back
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *rest)


def started_ranks():
    """The `Ranks` that this notebook has started last under a name of its own, if they still run."""
    from ...notebook.ranks import Ranks

    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    for value in reversed(list(shell.user_ns.values()) if shell else []):
        if isinstance(value, Ranks) and value.size > 1:
            with contextlib.suppress(UserError, RankError):
                value.get("None", timeout=30)
                return value
    return None


@cache
def own_ranks(size: int):
    """CPU ranks of the grader's own. `%%ranks` keeps going to the reader's, and nothing is printed."""
    from ...notebook.ranks import Ranks

    try:
        from IPython import get_ipython
        shell = get_ipython()
    except ImportError:
        shell = None
    magics = shell.magics_manager.magics["cell"] if shell else {}
    before = magics.get("ranks")
    with contextlib.redirect_stdout(io.StringIO()):
        ranks = Ranks(size, device="cpu")
    magics.update(ranks=before) if before else magics.pop("ranks", None)
    return ranks



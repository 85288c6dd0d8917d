"""How the output and the errors of several ranks look in one cell."""
from __future__ import annotations

import sys
from html import escape

from ..errors import RankError
from .style import RANK_COLOURS

FOLDED = 8  # lines of a rank other than 0 from which on a page folds them


class Show:
    """Output by rank: rank 0's at once, the others' after it, so that a page reads the same on every run.

    In a notebook the long text of another rank than 0 is folded; without HTML it reads as the same lines.
    """

    def __init__(self, size: int):
        self.size = size
        self.held: list[list[dict]] = [[] for _ in range(size)]
        self.text = [("", sys.stdout)] * size  # a rank's last line, until it is whole
        self.lines: list[str] | None = None  # collects lines to fold

    def message(self, rank: int, message: dict) -> None:
        if rank:
            self.held[rank].append(message)
        else:
            self._put(0, message)

    def close(self) -> None:
        """Everything that is left."""
        for rank in range(self.size):
            text = "".join(m["text"] for m in self.held[rank] if m["kind"] == "stream" and m["name"] == "stdout")
            self.lines = [] if rank and text.count("\n") > FOLDED and in_a_notebook() else None
            for message in self.held[rank]:
                self._put(rank, message)
            self._flush(rank)
            self._unfold(rank)
        self.held = [[] for _ in range(self.size)]

    def _put(self, rank: int, message: dict) -> None:
        from IPython.display import display

        if message["kind"] == "stream":
            self._write(rank, message["text"], sys.stderr if message["name"] == "stderr" else sys.stdout)
        elif message["kind"] in ("display_data", "execute_result"):
            data = message["data"]
            self._flush(rank)
            if set(data) == {"text/plain"} or any("tpgpt2" in kind for kind in data):
                self._write(rank, data.get("text/plain", "") + "\n", sys.stdout)
            else:
                self._write(rank, "\n", sys.stdout)
                again = self.lines is not None
                self._unfold(rank)
                display(data, metadata=message.get("metadata"), raw=True)
                self.lines = [] if again else None

    def _write(self, rank: int, text: str, stream) -> None:
        before, last = self.text[rank]
        if last is not stream:
            self._flush(rank)
            before = ""
        *lines, rest = (before + text).split("\n")
        for line in lines:
            self._line(rank, line, stream)
        self.text[rank] = (rest, stream)

    def _flush(self, rank: int) -> None:
        rest, stream = self.text[rank]
        if rest:
            self._line(rank, rest, stream)
        self.text[rank] = ("", stream)

    def _line(self, rank: int, line: str, stream) -> None:
        line = f"rank {rank} │ {last_state(line)}".rstrip()
        if self.lines is not None and stream is sys.stdout:
            self.lines.append(line)
        else:
            print(line, file=stream)

    def _unfold(self, rank: int) -> None:
        """Show the collected lines as one fold."""
        from IPython.display import display

        if self.lines:
            colour, text = RANK_COLOURS[rank % len(RANK_COLOURS)], "\n".join(self.lines)
            display({"text/plain": text, "text/html":
                     f'<details style="border-left: 3px solid {colour}; padding-left: 0.6em"><summary>rank {rank} │ '
                     f'{len(self.lines)} lines</summary><pre>{escape(text)}</pre></details>'}, raw=True)
        self.lines = None


def last_state(line: str) -> str:
    """What a line shows that a progress bar wrote over itself: each "\\r" goes back to its start."""
    if "\r" not in line:
        return line
    shown = ""
    for state in line.split("\r"):
        shown = state + shown[len(state):]
    return shown.rstrip()


def in_a_notebook() -> bool:
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class CellError(RankError):
    """Code raised on one or more ranks. `by_rank` holds each one's ename, evalue and traceback."""

    def __init__(self, by_rank: dict[int, dict], after: str):
        self.by_rank, self.after = by_rank, after
        said = [e["evalue"] if e["ename"] == "OutOfStep" else f"{who}: {e['ename']}: {e['evalue']}"
                for who, e in self._grouped()]
        super().__init__(". ".join(filter(None, [*said, after])))

    def _grouped(self) -> list[tuple[str, dict]]:
        """("rank 1" or "ranks 0, 1", error), the same error once; what follows from another's error last."""
        groups: dict[tuple, list[int]] = {}
        for rank, e in self.by_rank.items():
            groups.setdefault((e["ename"] == "OutOfStep", e["ename"], e["evalue"]), []).append(rank)
        return [(f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}", self.by_rank[ranks[0]])
                for _, ranks in sorted(groups.items(), key=lambda group: group[0][0])]

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the ranks' own tracebacks, not this module's frames."""
        lines = []
        for who, e in self._grouped():
            if e["ename"] != "OutOfStep":
                lines += [f"{who}:", *e["traceback"]]
        return [*lines, str(self)]

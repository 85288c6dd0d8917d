"""How the output and the errors of several ranks look in one cell."""
from __future__ import annotations

import sys

from ..errors import RankError


class Show:
    """Output by rank: rank 0's at once, the others' after it, so that a page reads the same on every run."""

    def __init__(self, size: int):
        self.size = size
        self.held: list[list[dict]] = [[] for _ in range(size)]
        self.text = [("", sys.stdout)] * size  # a rank's last line, until it is whole

    def message(self, rank: int, message: dict) -> None:
        if rank:
            self.held[rank].append(message)
        else:
            self._put(0, message)

    def close(self) -> None:
        """Everything that is left."""
        for rank in range(self.size):
            for message in self.held[rank]:
                self._put(rank, message)
            self._flush(rank)

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
                display(data, metadata=message.get("metadata"), raw=True)

    def _write(self, rank: int, text: str, stream) -> None:
        before, last = self.text[rank]
        if last is not stream:
            self._flush(rank)
            before = ""
        *lines, rest = (before + text).split("\n")
        for line in lines:
            print(f"rank {rank} │ {line}".rstrip(), file=stream)
        self.text[rank] = (rest, stream)

    def _flush(self, rank: int) -> None:
        rest, stream = self.text[rank]
        if rest:
            print(f"rank {rank} │ {rest}", file=stream)
        self.text[rank] = ("", stream)


class CellError(RankError):
    """Code raised on one or more ranks. `by_rank` holds each one's ename, evalue and traceback."""

    def __init__(self, by_rank: dict[int, dict], after: str):
        self.by_rank, self.after = by_rank, after
        super().__init__(". ".join([*(f"{who}: {e['ename']}: {e['evalue']}" for who, e in self._grouped()), after])
                         .removesuffix(". "))

    def _grouped(self) -> list[tuple[str, dict]]:
        """("rank 1" or "ranks 0, 1", error), the same error once."""
        groups: dict[tuple, list[int]] = {}
        for rank, e in self.by_rank.items():
            groups.setdefault((e["ename"], e["evalue"]), []).append(rank)
        return [(f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}", self.by_rank[ranks[0]])
                for ranks in groups.values()]

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the ranks' own tracebacks, not this module's frames."""
        lines = []
        for who, e in self._grouped():
            lines += [f"{who}:", *e["traceback"]]
        return [*lines, str(self)]

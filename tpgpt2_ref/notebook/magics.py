"""%%ranks and %%rank N: a whole cell for the ranks started last."""
from __future__ import annotations

from ..errors import RankError, UserError


def register(ranks) -> None:
    """Let the magics of this notebook, if it is one, run cells on these ranks."""
    from IPython import get_ipython

    def on_all(line: str, cell: str) -> None:
        """%%ranks: run the cell on every rank. %%ranks --fails: it shall fail; the message is shown."""
        if line.strip() not in ("", "--fails"):
            raise UserError(f"%%ranks {line}: it takes nothing, or --fails")
        if not line.strip():
            return ranks.run(cell)
        try:
            ranks.run(cell)
        except RankError as e:
            return print(str(e).replace(". ", ".\n"))
        raise UserError("this cell was to fail, and did not")

    def on_one(line: str, cell: str) -> None:
        """%%rank N: run the cell on rank N alone."""
        if not line.strip().isdigit():
            raise UserError(f"%%rank {line}: say which rank, such as %%rank 0")
        ranks.run(cell, rank=int(line))

    if shell := get_ipython():
        shell.register_magic_function(on_all, "cell", "ranks")
        shell.register_magic_function(on_one, "cell", "rank")

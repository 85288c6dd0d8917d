"""The process of one rank: an IPython kernel that joins the group, posts what it runs on the board, and streams rows.

    python -m tpgpt2_ref.notebook.rank_kernel CONNECTION_FILE cpu|cuda     with the variables of `torchrun.rank_env` set

`forker.py` starts it and `process.py` talks to it. Values and rows travel as display messages of the two types below.
"""
from __future__ import annotations

import base64
import faulthandler
import io
import json
import os
import pickle
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

from ..errors import UserError
from ..parallel.launch import open_gpu
from ..parallel.posts import Phase
from ..parallel.recorder import Recorder
from ..parallel.times import mark
from ..parallel.torchrun import torchrun_env

ROW, VALUE = "application/vnd.tpgpt2.row", "application/vnd.tpgpt2.value"
OWN = ("rank", "size", "device", "group", "board", "imagined")  # of a World: what no cell may change for the next


class RankSide:
    """What a rank's cells can reach: `world`, `torch` and `emit` by their names, the rest for `ranks.py`.

    These names are there anew in every cell, whatever an earlier one made of them.
    """

    def __init__(self, device: str, timeout: float):
        import torch
        from IPython import get_ipython

        from ..parallel.world import World

        mark("kernel is up")
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives that the flight recorder remembers
        self.world, shell = World.join(device, timeout, all_reduce="c10d"), get_ipython()
        self.recorder = None
        if board := self.world.board:
            board.unit, board.together = "its cell", True
            self.recorder = Recorder(board.folder, board.rank, board.size)
        self.own = {name: getattr(self.world, name) for name in OWN}
        self.names = dict(world=self.world, torch=torch, emit=self.emit, exit=Exit(), quit=Exit(), _rank=self)
        self.shell = shell
        self._restore()
        shell.events.register("pre_execute", self._begin)
        shell.events.register("post_execute", self._finish)
        mark("joined")

    def learn_to_sum(self) -> None:
        """Form the all-reduce algorithms that map peers' memory, which takes seconds: the reader reads meanwhile."""
        with self.world.board.quiet() if self.world.board else nullcontext():
            self.world.learn_to_sum()
        mark("learnt to sum")

    def _restore(self) -> None:
        vars(self.world).update(self.own)
        self.shell.user_ns.update(self.names)

    def _begin(self) -> None:
        self._restore()
        if board := self.world.board:
            cell, who = board.order()
            if who >> self.world.rank & 1:
                board.off = False
                board.begin(cell)
                self.recorder.begin()

    def _finish(self) -> None:
        """A cell has ended when its GPU work has: a collective that a peer never joined must not look done."""
        import torch

        if board := self.own["board"]:
            board.end(Phase.ENDING)
        try:
            if self.own["device"].type == "cuda":
                torch.cuda.synchronize()
        finally:
            self._restore()
            if board:
                board.end(Phase.ENDED if self.world.joined else Phase.BROKEN)

    def emit(self, row: dict | None = None, **fields) -> None:
        """Send one row to the notebook now. Values are numbers, text, or tensors of one element."""
        from IPython.display import display

        row = {**(row or {}), **fields}
        row = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
        display({ROW: json.dumps(row), "text/plain": str(row)}, raw=True)  # as text, so that NaN stays a number

    def send(self, value) -> None:
        """Send one picklable value to the notebook; its tensors arrive on the CPU."""
        from IPython.display import display

        out = io.BytesIO()
        CPUPickler(out).dump(value)
        display({VALUE: base64.b64encode(out.getvalue()).decode()}, raw=True)

    def about(self) -> tuple[str, str]:
        """(backend, device) of this rank, for people."""
        import torch

        cuda = self.world.device.type == "cuda"
        return self.world.backend, torch.cuda.get_device_name(self.world.device) if cuda else "CPU"

    def check_in_step(self) -> None:
        """A collective that completes rightly only if no rank still owes, or is owed, an earlier one."""
        from ..parallel.collectives import gather_objects

        answers = gather_objects("in step", self.world)
        if answers != ["in step"] * self.world.size:
            raise RuntimeError(f"the ranks are out of step: {answers}")


class Exit:
    """`exit` and `quit` on a rank: an error. As IPython has them they end the process a moment after the cell."""

    def __call__(self, *_):
        raise UserError("exit() does not end a rank: ranks.close() in the notebook ends them all")

    def __repr__(self) -> str:
        return "ranks.close() in the notebook ends the ranks"


class CPUPickler(pickle.Pickler):
    """Pickles a tensor as a compact copy on the CPU, whatever device or larger storage it is a view of."""

    def reducer_override(self, value):
        import torch

        if isinstance(value, torch.Tensor):
            return value.detach().cpu().clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


def main(connection_file: str, device: str) -> None:
    if device == "cuda":
        open_gpu(torchrun_env().local_rank)
    from ipykernel.kernelapp import IPKernelApp

    class Kernel(IPKernelApp):
        def init_iopub(self, context):
            context.sndhwm = 0  # a flood of rows waits for its reader: without it, rows above 1,000 are dropped
            super().init_iopub(context)

    stacks = Path(connection_file).with_suffix(".stack").open("w")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=False)  # answers even inside a blocked collective
    Kernel.launch_instance(["-f", connection_file, "--HistoryManager.enabled=False"])


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The process of one rank: an IPython kernel that joins the group, streams rows, and dies with its notebook.

    python -m tpgpt2_ref.notebook.rank_kernel CONNECTION_FILE     with torchrun's variables set

`process.py` starts it and talks to it. Values and rows travel as display messages of the two types below.
"""
from __future__ import annotations

import base64
import ctypes
import faulthandler
import io
import pickle
import signal
import sys
from pathlib import Path

ROW, VALUE = "application/vnd.tpgpt2.row+json", "application/vnd.tpgpt2.value"


class RankSide:
    """What a rank's cells can reach: `world`, `torch` and `emit` by their names, the rest for `ranks.py`."""

    def __init__(self, device: str, timeout: float):
        import torch
        from IPython import get_ipython

        from ..parallel.world import World

        self.world = World.join(device, timeout)
        shell = get_ipython()
        shell.user_ns.update(world=self.world, torch=torch, emit=self.emit)
        shell.events.register("post_run_cell", self._finish)

    def _finish(self, result=None) -> None:
        """A cell has ended when its GPU work has: a collective that a peer never joined must not look done."""
        import torch

        if self.world.device.type == "cuda":
            torch.cuda.synchronize()

    def emit(self, row: dict | None = None, **fields) -> None:
        """Send one row to the notebook now. Values are numbers, text, or tensors of one element."""
        from IPython.display import display

        row = {**(row or {}), **fields}
        row = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
        display({ROW: row, "text/plain": str(row)}, raw=True)

    def send(self, value) -> None:
        """Send one picklable value to the notebook; its tensors arrive on the CPU."""
        from IPython.display import display

        out = io.BytesIO()
        CPUPickler(out).dump(value)
        display({VALUE: base64.b64encode(out.getvalue()).decode()}, raw=True)

    def device_name(self) -> str:
        import torch

        return torch.cuda.get_device_name(self.world.device) if self.world.device.type == "cuda" else "CPU"

    def check_in_step(self) -> None:
        """A collective that completes rightly only if no rank still owes, or is owed, an earlier one."""
        from ..parallel.collectives import gather_objects

        answers = gather_objects("in step", self.world)
        if answers != ["in step"] * self.world.size:
            raise RuntimeError(f"the ranks are out of step: {answers}")
        self._finish()


class CPUPickler(pickle.Pickler):
    """Pickles a tensor as a compact copy on the CPU, whatever device or larger storage it is a view of."""

    def reducer_override(self, value):
        import torch

        if isinstance(value, torch.Tensor):
            return value.detach().cpu().clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


def main(connection_file: str) -> None:
    from ipykernel.kernelapp import IPKernelApp

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; elsewhere ipykernel polls its parent
    stacks = Path(connection_file).with_suffix(".stack").open("w")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=False)  # answers even inside a blocked collective
    IPKernelApp.launch_instance(["-f", connection_file, "--HistoryManager.enabled=False"])


if __name__ == "__main__":
    main(sys.argv[1])

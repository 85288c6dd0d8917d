"""The process group's own all-reduce: NCCL on GPUs, gloo on CPUs. Takes every tensor."""
from __future__ import annotations

import torch
import torch.distributed as dist

from .base import AllReduce


class C10dAllReduce(AllReduce):
    def __init__(self, world, group: dist.ProcessGroup | None = None):
        self.group = group or world.group
        self.name = dist.get_backend(self.group)
        self.options = dist.AllreduceOptions()  # a sum
        self.options.asyncOp = False  # NCCL on the current stream, as dist.all_reduce has it

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        if work := self.group.allreduce([x], self.options):  # what dist.all_reduce does, without its checks;
            work.wait()  # on the current stream NCCL leaves nothing to wait for
        return x


class FewCtasAllReduce(C10dAllReduce):
    """NCCL on a second communicator, which takes at most `ctas` multiprocessors: for sums beside products."""

    def __init__(self, world, ctas: int = 8):
        options = dist.ProcessGroupNCCL.Options()
        options.config.max_ctas = ctas
        super().__init__(world, dist.new_group(backend="nccl", pg_options=options, device_id=world.device))
        self.name = f"nccl-{ctas}"

    @classmethod
    def missing(cls, world) -> str | None:
        return None if world.backend == "nccl" else "it needs NCCL"

    def close(self) -> None:
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None

"""What an all-reduce algorithm must say of itself."""
from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # names of types alone: what an algorithm says of itself is read without torch
    import torch


class AllReduce(ABC):
    """Sums one tensor over the ranks of a world."""

    name: str  # as rows of a trace and results name it
    limit: float = inf  # the largest tensor, in bytes, that it is given; see `LIMITS`
    gathers = False  # whether it has `gather`

    @classmethod
    def missing(cls, world) -> str | None:
        """Why this algorithm can't run in this world, or None if it can. Every rank must answer alike."""
        return None

    def can(self, x: torch.Tensor) -> bool:
        """Whether it is able to sum a tensor of this size and dtype. Depends on nothing else: ranks must agree."""
        return True

    def takes(self, x: torch.Tensor) -> bool:
        """Whether it is able to, and the size is one for which it was chosen."""
        return x.nbytes <= self.limit and self.can(x)

    def fuses(self, partial: torch.Tensor) -> bool:
        """Whether `fused_add_norm` takes partial sums of this shape (T, D) and dtype."""
        return False

    def fused_add_norm(self, partial, bias, residual, weight, bias_ln, eps: float, pdl: bool = False):
        """All-reduce, bias, residual and LayerNorm in one kernel, for tensors that `fuses` accepts."""
        raise NotImplementedError(f"{self.name} sums, and nothing more")

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """All-gather: x (...) -> (size, ...), rank 0's first. Where `gathers`."""
        raise NotImplementedError(f"{self.name} does not gather")

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, shaped as x. May overwrite x: use the result."""

    @staticmethod
    def bytes_out(nbytes: int, size: int) -> float:
        """Payload that leaves one rank when `size` ranks sum tensors of nbytes. Here a ring's, the least possible."""
        return 2 * (size - 1) / size * nbytes

    def check(self) -> None:  # noqa: B027
        """Raise RankError if a peer fell silent in a call that has ended. Waits for nothing."""

    def close(self) -> None:  # noqa: B027
        """Give back buffers shared with peers."""

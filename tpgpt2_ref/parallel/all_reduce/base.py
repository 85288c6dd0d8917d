"""What a way to sum must say of itself."""
from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class AllReduce(ABC):
    """Sums one tensor over the ranks of a world."""

    name: str  # as rows of a trace and results name it

    @classmethod
    def missing(cls, world) -> str | None:
        """Why this way can't run in this world, or None if it can. Every rank must answer alike."""
        return None

    @abstractmethod
    def takes(self, x: torch.Tensor) -> bool:
        """Whether this way sums tensors of this size and dtype. Depends on nothing else: ranks must agree."""

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, shaped as x. May overwrite x: use the result."""

    def close(self) -> None:
        """Give back buffers shared with peers."""

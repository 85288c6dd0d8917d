"""The interface behind which every kernel runs: varlen queries over a paged KV cache."""
from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from types import ModuleType

import torch

from ..metadata import AttentionMetadata


class AttentionBackend(ABC):
    """One attention kernel, bound to a layer shape. Constructing it imports the kernel's package, and no other.

    num_heads, head_size   of this rank
    dtype                  of q, k, v
    block_size             tokens a page
    cache_dtype            "auto" (dtype) or "fp8_e4m3"
    """

    name: str
    cuda_graphs = True  # may a decode step, `build` and `forward`, be captured? Not if it asks the GPU for a length
    prefill_graphs = False  # may a prefill be captured?

    def __init__(self, num_heads: int, head_size: int, dtype: torch.dtype, block_size: int = 16,
                 cache_dtype: str = "auto"):
        self.num_heads, self.head_size, self.dtype = num_heads, head_size, dtype
        self.block_size, self.cache_dtype = block_size, cache_dtype
        self.scale = head_size**-0.5

    @property
    def kv_dtype(self) -> torch.dtype:
        """What keys and values are kept in."""
        return self.dtype if self.cache_dtype == "auto" else torch.float8_e4m3fn

    @classmethod
    def load(cls) -> ModuleType:
        """Import the kernel's package; ImportError says what is missing. Without an override: PyTorch's own."""
        return torch

    def build(self, meta: AttentionMetadata):
        """Once a step, before the layers: whatever the kernel wants precomputed. Becomes `meta.kernel`."""
        return None

    def scratch(self, rows: int, longest: int) -> int:
        """Bytes, at most, that a step holds for a while beside q, k, v and the result: a decode step of so many rows,
        or a prefill, with sequences of up to `longest` tokens."""
        return 0

    @abstractmethod
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor,
                meta: AttentionMetadata) -> torch.Tensor:
        """Causal attention of T new tokens over their sequences' cached and new tokens.

        q, k, v    (T, heads, head_size), the new tokens; k and v are already in the cache
        kv_cache   (2, num_blocks, block_size, heads, head_size)
        returns    (T, heads, head_size)
        """


def import_package(*names: str) -> ModuleType:
    """The first of these modules that can be imported. That one is found says nothing: its library may not load."""
    failures = []
    for name in names:
        try:
            return import_module(name)
        except Exception as e:  # a broken package raises anything: OSError, AttributeError, RuntimeError
            failures.append(str(e) if isinstance(e, ModuleNotFoundError) else f"{name} does not import ({e})")
    raise ImportError("; ".join(failures))

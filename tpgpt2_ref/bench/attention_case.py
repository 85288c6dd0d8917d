"""A batch for an attention kernel, made at random, and what comes out of it in fp64. Tests and benchmarks share it."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..attention.backends.naive import NaiveBackend
from ..attention.kv_cache import allocate_kv_cache, write_kv_cache
from ..attention.metadata import AttentionMetadata, slots


@dataclass
class Case:
    """q, k, v (T, heads, head_size) are the new tokens, slices of one (T, 3, heads, head_size) as `c_attn` makes it."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    kv_cache: torch.Tensor
    meta: AttentionMetadata

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[1:]

    def reference(self) -> torch.Tensor:
        """(T, heads, head_size) float64: NAIVE over the cache, whatever its dtype."""
        naive = NaiveBackend(*self.shape, torch.float64, self.meta.block_size)
        return naive.forward(self.q.double(), None, None, self.kv_cache, self.meta)

    def run(self, backend) -> torch.Tensor:
        """One layer's attention as the model calls it: `build` once a step, then `forward`."""
        meta = replace(self.meta)
        meta.kernel = backend.build(meta)
        return backend.forward(self.q, self.k, self.v, self.kv_cache, meta)

    def error(self, backend) -> float:
        """How far from fp64."""
        return largest_error(self.run(backend), self.reference())


def largest_error(out: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference; where the value wanted is above 1, relative to it, as rounding to bfloat16 is."""
    return ((out.double() - wanted).abs() / wanted.abs().clamp(min=1)).max().item()


def make_case(new: list[int], cached: list[int], heads: int, head_size: int, dtype: torch.dtype,
              device: str = "cpu", block_size: int = 16, cache_dtype: str = "auto", seed: int = 0) -> Case:
    """Sequence b has cached[b] tokens in the cache and new[b] more in this step. Its pages lie scattered."""
    make = torch.Generator(device).manual_seed(seed)
    lens = torch.tensor([a + b for a, b in zip(new, cached, strict=True)], device=device)
    pages = -(-lens // block_size)
    width, used = int(pages.max()), int(pages.sum())
    order = torch.randperm(used + 7, generator=make, device=device)[:used] + 1  # page 0 is nobody's
    table = torch.zeros(len(new), width, dtype=torch.int32, device=device)
    table[torch.arange(width, device=device) < pages[:, None]] = order.int()

    sequence = torch.arange(len(new), device=device).repeat_interleave(lens)  # of every token, cached or new
    begin = lens.cumsum(0) - lens
    position = torch.arange(len(sequence), device=device) - begin[sequence]
    is_new = position >= torch.tensor(cached, device=device)[sequence]
    qkv = torch.randn(len(sequence), 3, heads, head_size, generator=make, device=device).to(dtype)
    cache_in = torch.float8_e4m3fn if cache_dtype == "fp8_e4m3" else dtype
    kv_cache, = allocate_kv_cache(1, used + 8, block_size, heads, head_size, cache_in, torch.device(device))
    kv_cache.view(torch.uint8).random_(0, 90, generator=make)  # what others left there: finite, and not zero
    where = slots(table, position, sequence, block_size)
    write_kv_cache(qkv[:, 1], qkv[:, 2], kv_cache, where)

    start = torch.zeros(len(new) + 1, dtype=torch.int32, device=device)
    start[1:] = torch.tensor(new, device=device).cumsum(0)
    meta = AttentionMetadata(start, lens.int(), table, where[is_new], max(new), int(lens.max()), not any(cached),
                             block_size)
    q, k, v = qkv[is_new].unbind(1)  # (T, heads, head_size) each, rows 3 * heads * head_size apart
    return Case(q, k, v, kv_cache, meta)

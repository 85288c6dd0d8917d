"""FLEX_ATTENTION: a mask written in Python, compiled into a Triton kernel (PyTorch's FlexAttention).

A decode step hands the block table itself to the kernel, as the list of blocks that each query attends to. The
mask's block is the page, so it does not matter where in the cache a page lies: only the last page of a sequence
needs looking into. A prefill attends over packed keys, `lo <= key <= hi` for each query, in blocks of 128.
Without a GPU it runs uncompiled, over packed keys in decode too: slow, and right.
"""
from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .base import AttentionBackend
from .gather import Packed, gather, pack

BLOCK = 128  # of a prefill's mask
SMALL = {"BLOCK_M": 64, "BLOCK_N": 32, "num_stages": 1}  # above head size 256 the usual tiles exceed shared memory


class FlexAttention(AttentionBackend):
    name = "FLEX_ATTENTION"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.prefill = compiled()
        self.decode = compiled(dynamic=True)  # one kernel for every batch size
        self.options = {"FORCE_USE_FLEX_ATTENTION": True} | (SMALL if self.head_size > 256 else {})

    def build(self, meta):
        """(block mask, pages to gather or None). In decode the mask still lacks its lengths: the cache's size."""
        if reads_pages(meta):
            return pages_mask(meta), None
        packed = None if meta.no_context else pack(meta)
        return causal_mask(meta, packed), packed

    def forward(self, q, k, v, kv_cache, meta):
        mask, packed = meta.kernel
        if reads_pages(meta):
            k, v = (x.flatten(0, 1).transpose(0, 1)[None] for x in kv_cache)  # (1, heads, slots, d)
            return self.decode(q[:, :, None], k, v, block_mask=mask(seq_lengths=(1, k.shape[2])), scale=self.scale,
                               kernel_options={"BLOCK_N": math.gcd(self.block_size, 64)})[:, :, 0]
        if packed is not None:
            k, v = gather(kv_cache, packed)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, tokens, d)
        flex = self.prefill if q.is_cuda else uncompiled
        out = flex(q, k, v, block_mask=mask, scale=self.scale, kernel_options=self.options)
        return out[0].transpose(0, 1)


def uncompiled(*args, **kwargs) -> torch.Tensor:
    """flex_attention as it is, without PyTorch's word that a kernel would be faster: without a GPU there is none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return flex_attention(*args, **kwargs)


def compiled(**options) -> Callable[..., torch.Tensor]:
    """flex_attention as a kernel: an error, never a fall back to the uncompiled form, which knows no block lists."""
    kernel = torch.compile(flex_attention, fullgraph=True, **options)

    def call(*args, **kwargs):
        with torch._dynamo.config.patch(recompile_limit=64):  # another kernel for each head count and head size
            return kernel(*args, **kwargs)

    return call


def reads_pages(meta) -> bool:
    """Only a compiled kernel keeps to the list of blocks; uncompiled, the mask alone would have to say it all."""
    return meta.is_decode and meta.seq_lens.is_cuda


def pages_mask(meta) -> Callable[..., BlockMask]:
    """One query a sequence over the whole cache: its full pages unmasked, its last page up to its length."""
    page, last = meta.block_size, (meta.seq_lens - 1) // meta.block_size  # (B,) which page is the last
    table = meta.block_table.contiguous()  # (B, pages)
    from_last = (last[:, None] + torch.arange(table.shape[1], device=table.device)).clamp(max=table.shape[1] - 1)
    offset = (meta.seq_lens - 1) % page  # (B,) of the query in its last page

    def up_to_the_query(b, h, q, slot):
        return slot % page <= offset[b]

    # both lists as wide as the table: the kernel finds its row in either with the same stride
    return partial(BlockMask.from_kv_blocks, torch.ones_like(last)[:, None, None],
                   table.gather(1, from_last)[:, None, None], last[:, None, None], table[:, None, None],
                   BLOCK_SIZE=(BLOCK, page), mask_mod=up_to_the_query, compute_q_blocks=False)


def causal_mask(meta, packed: Packed | None) -> BlockMask:
    """T packed queries over n packed keys: query t sees keys lo[t]..hi[t], the ones of its sequence up to its own."""
    start_q = meta.query_start_loc
    start_k = start_q if packed is None else packed.start
    tokens = torch.arange(len(meta.slot_mapping), dtype=torch.int32, device=start_q.device)
    sequence = torch.searchsorted(start_q, tokens, right=True) - 1
    lo = start_k[sequence]
    hi = start_k[sequence + 1] - start_q[sequence + 1] + tokens

    def own_past(b, h, t, key):
        return (lo[t] <= key) & (key <= hi[t])

    def own_past_of_new_tokens(b, h, t, key):  # the same where queries and keys are one: faster
        return (sequence[t] == sequence[key]) & (t >= key)

    n = len(tokens) if packed is None else len(packed.slots)
    first = tokens[::BLOCK].long()  # of each block of queries
    final = (first + BLOCK - 1).clamp(max=len(tokens) - 1)
    begin, end = lo[first] // BLOCK, hi[final] // BLOCK + 1  # blocks of keys that some query of the block sees
    full = (lo[final] + BLOCK - 1) // BLOCK  # from here on, every query sees ...
    fulls = ((hi[first] + 1) // BLOCK - full).clamp(min=0)  # ... so many blocks whole
    j = torch.arange(-(-n // BLOCK), dtype=torch.int32, device=start_q.device)
    some = begin[:, None] + j
    some = some + torch.where(some >= full[:, None], fulls[:, None], 0)  # step over the full ones
    limit = len(j) - 1
    return BlockMask.from_kv_blocks(
        (end - begin - fulls)[None, None], some.clamp(max=limit)[None, None], fulls[None, None],
        (full[:, None] + j).clamp(max=limit)[None, None], BLOCK_SIZE=BLOCK,
        mask_mod=own_past_of_new_tokens if packed is None else own_past,
        seq_lengths=(len(tokens), n), compute_q_blocks=False)

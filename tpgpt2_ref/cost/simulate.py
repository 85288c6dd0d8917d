"""A forward on up to thousands of imagined ranks: which collectives, of how many bytes. Times are for `cost.py`."""
from __future__ import annotations

from dataclasses import replace

import torch

from ..attention.backends.base import AttentionBackend
from ..attention.metadata import prefill_metadata
from ..config import GPT2Config
from ..gpt2 import GPT2Model, attention_heads
from ..parallel.fake import fake_world
from ..trace import Collective, Trace


class ShapesOnly(AttentionBackend):
    """Attention's shapes without attention: enough to count what the ranks send."""

    name = "SHAPES_ONLY"

    def forward(self, q, k, v, kv_cache, meta):
        return torch.empty_like(q)


def fake_forward(config: GPT2Config, size: int, plan: str = "shipped", tokens: int = 1,
                 dtype: torch.dtype = torch.bfloat16) -> list[Collective]:
    """The collectives of one prompt's forward and its last position's logits, as rank 0 of `size` records them."""
    with fake_world(size) as world, torch.device("meta"):
        heads = attention_heads(config, world, plan)
        model = GPT2Model(config, world, ShapesOnly(heads, config.head_size, dtype), plan).to(dtype)
        meta, _ = prefill_metadata([tokens], torch.zeros(1, -(-tokens // 16), dtype=torch.int32, device="cpu"))
        meta = replace(meta, slot_mapping=meta.slot_mapping.to("meta"))
        kv = [torch.empty(2, -(-tokens // 16), 16, heads, config.head_size, dtype=dtype)] * config.n_layer
        ids = torch.empty(tokens, dtype=torch.int64)
        world.trace = Trace()
        model.logits(model(ids, ids, kv, meta)[-1:])  # (T, D) -> last position's (1, V)
        return world.trace.rows

"""One forward as a call without arguments, for whoever wants to time or trace it: a prefill, or a decode step."""
from __future__ import annotations

import torch

from ..attention.kv_cache import allocate_kv_cache
from ..attention.metadata import decode_metadata, prefill_metadata


def make_step(model, phase: str, batch: int, prompt_len: int):
    """step() runs the forward and the logits of each sequence's last position: -> (batch, V).

    "prefill": `batch` prompts of `prompt_len` tokens. "decode": one token each, with `prompt_len` in the cache.
    The ids are random but the same on every rank; a cache that nobody filled holds zeros, which take as long.
    """
    config, impl, device = model.config, model.impl, model.world.device
    held = prompt_len + (phase == "decode")
    pages = -(-held // impl.block_size)
    kv = allocate_kv_cache(config.n_layer, batch * pages + 1, impl.block_size, impl.num_heads, impl.head_size,
                           impl.dtype, device)
    table = 1 + torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
    if phase == "prefill":
        meta, positions = prefill_metadata([prompt_len] * batch, table, impl.block_size)
        last = meta.query_start_loc[1:].long() - 1
    else:
        positions = torch.full((batch,), prompt_len, device=device)
        meta = decode_metadata(positions, table, held, impl.block_size)
        last = torch.arange(batch, device=device)
    ids = torch.randint(config.vocab_size, positions.shape, generator=torch.Generator().manual_seed(0)).to(device)

    @torch.inference_mode()
    def step() -> torch.Tensor:
        return model.logits(model(ids, positions, kv, meta)[last])  # (T, D) -> (batch, V)

    return step

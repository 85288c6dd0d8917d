"""A prefill on one rank: gpt2.py's forward for whole prompts, with fewer passes over memory between its products."""
from __future__ import annotations

import torch

from ..attention.metadata import AttentionMetadata
from ..kernels.prefill import add_norm, write_cache


def prefill_step(model, ids: torch.Tensor, positions: torch.Tensor, kv_caches: list[torch.Tensor],
                 meta: AttentionMetadata, last: torch.Tensor) -> torch.Tensor:
    """ids (T,), positions (T,), last (B,) row of each prompt's last token -> logits (B, V)."""
    meta.kernel = model.impl.build(meta)
    x = model.wte(ids) + model.wpe(positions)  # (T, D)
    x, normed = add_norm(x, None, model.h[0].ln_1)
    for i, (block, kv_cache) in enumerate(zip(model.h, kv_caches)):
        qkv = block.attn.c_attn(normed)  # (T, D) -> (T, 3D/n)
        write_cache(qkv, kv_cache, meta.slot_mapping)
        q, k, v = (t.unflatten(-1, (-1, model.impl.head_size)) for t in qkv.chunk(3, -1))  # (T, heads, head_size)
        out = model.impl.forward(q, k, v, kv_cache, meta).flatten(1)  # (T, D/n)
        x, normed = add_norm(x, block.attn.c_proj(out), block.ln_2)
        fc = block.mlp.c_fc
        y = block.mlp.c_proj(torch._addmm_activation(fc.bias, normed, fc.weight.T, use_gelu=True))  # tanh's GELU
        if i + 1 < len(model.h):
            x, normed = add_norm(x, y, model.h[i + 1].ln_1)
    return model.logits(model.ln_f(x[last] + y[last]))  # only the last tokens' rows are needed

"""A prefill on one rank: gpt2.py's forward for whole prompts, with fewer passes over memory between its products.

In the last layer only the prompts' last tokens go on behind the cache write: nobody reads the others.
"""
from __future__ import annotations

import torch

from ..attention.metadata import AttentionMetadata
from ..kernels.prefill import add_norm, write_cache


def prefill_step(model, ids: torch.Tensor, positions: torch.Tensor, kv_caches: list[torch.Tensor],
                 meta: AttentionMetadata, last: torch.Tensor) -> torch.Tensor:
    """ids (T,), positions (T,), last (B,) row of each prompt's last token -> logits (B, V)."""
    impl = model.impl
    meta.kernel = impl.build(meta)
    x = model.wte(ids) + model.wpe(positions)  # (T, D)
    x, normed = add_norm(x, None, model.h[0].ln_1)
    for block, kv_cache, following in zip(model.h, kv_caches, [*model.h[1:], None]):
        qkv = block.attn.c_attn(normed)  # (T, D) -> (T, 3D/n)
        write_cache(qkv, kv_cache, meta.slot_mapping)
        if following is None:
            qkv, x, meta = qkv[last], x[last], last_tokens(impl, meta)  # T is B from here on
        q, k, v = (t.unflatten(-1, (-1, impl.head_size)) for t in qkv.chunk(3, -1))  # (T, heads, head_size)
        out = impl.forward(q, k, v, kv_cache, meta).flatten(1)  # (T, D/n)
        x, normed = add_norm(x, block.attn.c_proj(out), block.ln_2)
        c_fc = block.mlp.c_fc
        y = block.mlp.c_proj(torch._addmm_activation(c_fc.bias, normed, c_fc.weight.T, use_gelu=True))  # tanh's GELU
        x, normed = add_norm(x, y, following.ln_1 if following else model.ln_f)
    return model.logits(normed)


def last_tokens(impl, meta: AttentionMetadata) -> AttentionMetadata:
    """The same sequences with their last token alone as the query: a decode step's view of them."""
    start = torch.arange(meta.num_seqs + 1, dtype=torch.int32, device=meta.seq_lens.device)
    decode = AttentionMetadata(start, meta.seq_lens, meta.block_table, meta.slot_mapping, 1, meta.max_seq_len, False,
                               meta.block_size)
    decode.kernel = impl.build(decode)
    return decode

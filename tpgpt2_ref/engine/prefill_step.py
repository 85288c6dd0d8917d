"""A prefill on one rank: gpt2.py's forward for whole prompts, with fewer passes over memory between its products.

In the last layer only the prompts' last tokens go on behind the cache write: nobody reads the others.
The layers stop at each sum over the ranks, and whoever runs them says how it is waited for (`halves.py`).
"""
from __future__ import annotations

from types import ModuleType

import torch

from ..attention.metadata import AttentionMetadata
from .halves import Layers


def prefill_layers(model, ids_T: torch.Tensor, positions_T: torch.Tensor, kv_caches: list[torch.Tensor],
                   meta: AttentionMetadata, last_B: torch.Tensor, kernels: ModuleType) -> Layers:
    """ids (T,), positions (T,), last (B,) row of each prompt's last token -> their hidden states (B, D).

    Yields this rank's part of each sum, and the layer's name; `send` it the sum over the ranks.
    kernels  `kernels.prefill`, or its twins in `kernels.plain`
    """
    impl, add_norm = model.impl, kernels.add_norm
    meta.kernel = impl.build(meta)
    x_TD = (yield model.wte.partial(ids_T), model.wte.name) + model.wpe(positions_T)
    x_TD, normed_TD = add_norm(x_TD, None, model.h[0].ln_1)
    for block, kv_cache, following in zip(model.h, kv_caches, [*model.h[1:], None]):
        qkv = block.attn.c_attn(normed_TD)  # (T, D) -> (T, 3D/n)
        kernels.write_cache(qkv, kv_cache, meta.slot_mapping)
        if following is None:  # T is B from here on
            qkv, x_TD, meta = qkv[last_B], x_TD[last_B], last_tokens(impl, meta)
        q, k, v = (t.unflatten(-1, (-1, impl.head_size)) for t in qkv.chunk(3, -1))  # (T, heads, head_size)
        out = impl.forward(q, k, v, kv_cache, meta).flatten(1)  # (T, D/n)
        y_TD = yield block.attn.c_proj.partial(out), block.attn.c_proj.name  # (T, D/n) -> (T, D)
        x_TD, normed_TD = add_norm(x_TD, y_TD, block.ln_2)
        c_fc = block.mlp.c_fc
        inner = torch._addmm_activation(c_fc.bias, normed_TD, c_fc.weight.T, use_gelu=True)  # (T, 4D/n), tanh's GELU
        y_TD = yield block.mlp.c_proj.partial(inner), block.mlp.c_proj.name  # (T, 4D/n) -> (T, D)
        x_TD, normed_TD = add_norm(x_TD, y_TD, following.ln_1 if following else model.ln_f)
    return normed_TD  # (B, D)


def last_tokens(impl, meta: AttentionMetadata) -> AttentionMetadata:
    """The same sequences with their last token alone as the query: a decode step's view of them."""
    start = torch.arange(meta.num_seqs + 1, dtype=torch.int32, device=meta.seq_lens.device)
    decode = AttentionMetadata(start, meta.seq_lens, meta.block_table, meta.slot_mapping, 1, meta.max_seq_len, False,
                               meta.block_size)
    decode.kernel = impl.build(decode)
    return decode

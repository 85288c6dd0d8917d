"""One decode step on one rank, made of the functions in `kernels/`: gpt2.py's forward for one token a sequence.

Everything it reads and writes stays on the device, so that it can be captured in a CUDA graph with its collectives.
"""
from __future__ import annotations

from dataclasses import replace

import torch

from ..attention.metadata import decode_metadata
from ..kernels import Kernels
from ..kernels.plain import order_key
from ..kernels.state import DecodeState, Scaled
from ..kernels.tiles import ALL_WIDE
from ..parallel.collectives import all_gather, all_gather_stack, all_reduce, all_reduce_add_norm
from ..request import SamplingParams
from .sampling import sample


def decode_step(model, kv_caches: list[torch.Tensor], state: DecodeState, kernels: Kernels,
                params: SamplingParams | None = None) -> None:
    """Write the newest tokens' keys and values, and put the next token of every row into `state`.

    params  None: greedy or at a temperature, as `state.sampling` says. Top-k and top-p need all logits in one place:
            they are given here, and become part of a captured step
    """
    world, k = model.world, kernels
    if params is not None:  # ln_f is applied in plain torch, which would not clear the sums for the next step
        k = replace(k, scaled_norm=False)
    x = k.embed(state, model.wte, model.wpe, position=world.rank == 0)  # (B, D)
    x = all_reduce(x, world, model.wte.name)
    norms = [block.ln_1 for block in model.h[1:]] + [model.ln_f]  # the one behind each block
    normed, norm = x, model.h[0].ln_1
    for block, kv_cache, next_norm in zip(model.h, kv_caches, norms):
        qkv = k.qkv(normed, norm, block.attn.c_attn, state)  # (B, D) -> (B, 3D/n)
        out = k.attention(qkv, kv_cache, state)  # (B, D/n)
        x, normed, norm = row_parallel(out, block.attn.c_proj, x, block.ln_2, k, state, world)  # -> (B, D)
        inner = k.gelu(normed, norm, block.mlp.c_fc, state)  # (B, D) -> (B, 4D/n)
        x, normed, norm = row_parallel(inner, block.mlp.c_proj, x, next_norm, k, state, world)  # -> (B, D)
    if params is not None:
        keys = sampled_key(model.logits(norm(normed) if norm else normed), state, params)
    else:
        keys = k.best(normed, norm, model.lm_head, state)  # (programs, B) of this rank's part of the vocabulary
        if not world.alone:
            algorithm = next((a for a in world.all_reduces if k.fused_sum and hasattr(a, "gather")), None)
            keys, name = keys.amax(0), model.lm_head.name  # (B,) -> (n, B)
            keys = all_gather_stack(algorithm, keys, world, name) if algorithm else \
                all_gather(keys[:, None], world, name).T
    k.pick(keys, state)


def row_parallel(x, linear, residual, norm, k: Kernels, state, world):
    """c_proj, the sum over the ranks, the residual, and what the next layer reads.

    -> (residual (B, D), what the next layer reads (B, D), the LayerNorm it must still apply, or None)
    """
    if world.alone:
        more = {"next_norm": norm} if k.scaled_norm and len(x) >= ALL_WIDE else {}
        left = k.add(x, linear, residual, state, **more)
        return left.x if isinstance(left, Scaled) else left, left, norm
    algorithm = next(algorithm for algorithm in world.all_reduces if algorithm.takes(residual))
    if k.fused_sum and hasattr(algorithm, "fuses") and algorithm.fuses(residual):
        y = k.partial(x, linear, bias=False, state=state)
        normed, residual = all_reduce_add_norm(algorithm, y, linear, residual, norm, world, k.pdl)
        return residual, normed, None
    y = k.partial(x, linear, bias=world.rank == 0, state=state)
    residual = residual + all_reduce(y, world, linear.name)
    return residual, residual, norm


def readable_step(model, kv_caches: list[torch.Tensor], state: DecodeState, kernels: Kernels,
                  params: SamplingParams = SamplingParams()) -> None:
    """The same step by gpt2.py itself: the ladder's first rungs, and the twin of `decode_step`."""
    longest = state.block_table.shape[1] * state.block_size
    meta = decode_metadata(state.positions, state.block_table, longest, state.block_size)
    logits = model.logits(model(state.ids, state.positions, kv_caches, meta))
    kernels.pick(sampled_key(logits, state, params), state)


def sampled_key(logits: torch.Tensor, state: DecodeState, params: SamplingParams) -> torch.Tensor:
    """logits (B, V) -> the next tokens' keys (1, B)."""
    token = sample(logits, params, state.sampling[2:], state.positions + 1)
    return order_key(torch.zeros_like(token, dtype=torch.float32), token)[None]

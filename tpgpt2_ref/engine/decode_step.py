"""One decode step on one rank, made of the functions in `kernels/`: gpt2.py's forward for one token a sequence.

Everything it reads and writes stays on the device, so that it can be captured in a CUDA graph with its collectives.
"""
from __future__ import annotations

from dataclasses import replace

import torch

from ..attention.metadata import decode_metadata
from ..kernels import Kernels
from ..kernels.plain import order_key
from ..kernels.state import DecodeState, Residual
from ..kernels.tiles import ALL_WIDE
from ..parallel.collectives import algorithm_for, all_gather, all_gather_stack, all_reduce, all_reduce_add_norm
from .sampling import draw


def decode_step(model, kv_caches: list[torch.Tensor], state: DecodeState, kernels: Kernels,
                filtered: bool = False) -> None:
    """Write the newest tokens' keys and values, and put the next token of every row into `state`.

    filtered  top-k or top-p may be asked for, which need all logits in one place: they are gathered. Otherwise each
              program of the head finds its own argmax, greedy or at a temperature, as `state.sampling` says
    """
    world, k = model.world, kernels
    if filtered:  # ln_f is applied in plain torch, which would not clear the sums for the next step
        k = replace(k, scaled_norm=False)
    x_BD = k.embed(state, model.wte, model.wpe, position=world.rank == 0)
    x = Residual(all_reduce(x_BD, world, model.wte.name), model.h[0].ln_1)
    norms = [block.ln_1 for block in model.h[1:]] + [model.ln_f]  # the one behind each block
    for block, kv_cache, next_norm in zip(model.h, kv_caches, norms):
        qkv = k.qkv(x, block.attn.c_attn, state)  # (B, D) -> (B, 3D/n)
        out = k.attention(qkv, kv_cache, state)  # (B, 3D/n) -> (B, D/n)
        x = row_parallel(out, block.attn.c_proj, x, block.ln_2, k, state, world)  # (B, D/n) -> (B, D)
        inner = k.gelu(x, block.mlp.c_fc, state)  # (B, D) -> (B, 4D/n)
        x = row_parallel(inner, block.mlp.c_proj, x, next_norm, k, state, world)  # (B, 4D/n) -> (B, D)
    if filtered:
        k.argmax(sampled_keys(model.logits(x.read()), state), state)  # (B, D) -> (B, V) -> (1, B)
    else:
        pick(k.head_argmax(x, model.lm_head, state), model, state, k)


def pick(keys: torch.Tensor, model, state: DecodeState, k: Kernels) -> None:
    """keys (programs, B) of this rank's part of the vocabulary -> the largest of all ranks', into `state`."""
    world, name = model.world, model.lm_head.name
    if not world.alone:
        algorithm = next((a for a in world.all_reduces if k.fused_sum and a.gathers), None)
        keys = keys.amax(0)  # (B,), and gathered: (n, B)
        keys = all_gather_stack(algorithm, keys, world, name) if algorithm else all_gather(keys[:, None], world, name).T
    k.argmax(keys, state)


def row_parallel(x: torch.Tensor, linear, residual: Residual, norm, k: Kernels, state, world) -> Residual:
    """c_proj, the sum over the ranks, and the residual: x (B, K) -> (B, D), with the LayerNorm behind it, `norm`."""
    if world.alone:
        return k.add(x, linear, residual, norm, state, scaled=k.scaled_norm and len(x) >= ALL_WIDE)
    algorithm = algorithm_for(residual.x, world)
    if k.fused_sum and algorithm.fuses(residual.x):
        y_BD = k.partial(x, linear, bias=False, state=state)
        normed_BD, x_BD = all_reduce_add_norm(algorithm, y_BD, linear, residual.x, norm, world, k.pdl)
        return Residual(x_BD, norm, normed_BD)
    y_BD = k.partial(x, linear, bias=world.rank == 0, state=state)
    return Residual(residual.x + all_reduce(y_BD, world, linear.name), norm)


def readable_step(model, kv_caches: list[torch.Tensor], state: DecodeState, kernels: Kernels,
                  filtered: bool = True) -> None:
    """The same step by gpt2.py itself: the ladder's first rungs, and the twin of `decode_step`.

    filtered  False: greedy, whatever `state.sampling` says
    """
    longest = state.block_table.shape[1] * state.block_size
    meta = decode_metadata(state.positions, state.block_table, longest, state.block_size)
    logits_BV = model.logits(model(state.ids, state.positions, kv_caches, meta))
    keys = sampled_keys(logits_BV, state) if filtered else keys_of(logits_BV.argmax(-1))
    kernels.argmax(keys, state)


def sampled_keys(logits_BV: torch.Tensor, state: DecodeState) -> torch.Tensor:
    """logits (B, V) -> the next tokens' keys (1, B)."""
    return keys_of(draw(logits_BV, *state.sampling, state.seeds, state.positions + 1))


def keys_of(token: torch.Tensor) -> torch.Tensor:
    """Tokens (B,) that are chosen already -> keys (1, B) that are largest at them."""
    return order_key(torch.zeros_like(token, dtype=torch.float32), token)[None]

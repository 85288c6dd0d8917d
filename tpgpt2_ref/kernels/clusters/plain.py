"""The cluster kernels' twins in plain torch: the same parts in the same slots, without clusters, blocks and warps.

They say who contributes what to the residual stream, and run anywhere. `tests/test_clusters.py` holds the kernels to
them, on a CPU through the emulator and on GPUs. B sequences, D hidden size, n ranks; everything between the layers is
in float32, which is what the kernels' split operands (16-bit halves, high and low) amount to.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

from .. import plain
from ..state import DecodeState, Residual
from .shape import BLOCKS, UNITS

SLICE = UNITS * BLOCKS  # hidden units of the MLP that one cluster takes


def linear(x, weight, bias=None):
    """F.linear in float32."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


def norm(x_BD, ln):
    return F.layer_norm(x_BD.float(), x_BD.shape[-1:], ln.weight.float(), ln.bias.float(), ln.eps)


def embedding(model, state: DecodeState) -> torch.Tensor:
    """x (B, D) of the newest tokens."""
    return model.wte.weight[state.ids].float() + model.wpe.weight[state.positions].float()


def attention(x_BD, block, kv_cache, state: DecodeState, first: bool = True) -> torch.Tensor:
    """x (B, D), the residual stream -> slots (heads, B, D): each head's part of what the stream is behind attention.

    first  this rank adds x itself and the bias, once for all ranks
    """
    heads, head_size = kv_cache.shape[-2:]
    qkv = linear(norm(x_BD, block.ln_1), block.attn.c_attn.weight, block.attn.c_attn.bias)  # (B, D) -> (B, 3D/n)
    q = qkv.chunk(3, -1)[0]
    out_BD = attend(q, qkv.to(kv_cache.dtype), kv_cache, state)
    proj = block.attn.c_proj
    slots = torch.stack([linear(o, w) for o, w in zip(out_BD.split(head_size, 1), proj.weight.split(head_size, 1))])
    if first:
        slots[0] += x_BD + proj.bias.float()
    return slots  # (heads, B, D)


def attend(q, qkv, kv_cache, state: DecodeState) -> torch.Tensor:
    """q (B, D/n) in float32, k and v of qkv (B, 3D/n) as the cache has them -> (B, D/n)."""
    heads, head_size = kv_cache.shape[-2:]
    plain.write_cache(qkv, kv_cache, state.slots())
    k, v = kv_cache[:, state.block_table.long()].flatten(2, 3).float()  # (B, pages * block_size, heads, head_size)
    scores = torch.einsum("bhd,bthd->bht", q.unflatten(-1, (heads, head_size)), k) * head_size**-0.5
    future = torch.arange(k.shape[1], device=q.device) > state.positions[:, None]  # (B, T)
    return torch.einsum("bht,bthd->bhd", scores.masked_fill(future[:, None], float("-inf")).softmax(-1), v).flatten(1)


def mlp(x_BD, block, first: bool = True) -> torch.Tensor:
    """x (B, D) -> slots (clusters, B, D): each slice of 256 hidden units' part of the stream behind the MLP."""
    fc, proj = block.mlp.c_fc, block.mlp.c_proj
    inner = F.gelu(linear(norm(x_BD, block.ln_2), fc.weight, fc.bias), approximate="tanh")  # (B, D) -> (B, 4D/n)
    slots = torch.stack([linear(h, w) for h, w in zip(inner.split(SLICE, 1), proj.weight.split(SLICE, 1))])
    if first:
        slots[0] += x_BD + proj.bias.float()
    return slots  # (clusters, B, D)


def head(x_BD, model, state: DecodeState) -> torch.Tensor:
    """x (B, D) -> keys (1, B): the argmax over this rank's rows of the vocabulary, see `plain.head_argmax`."""
    normed = Residual(x_BD, model.ln_f, norm(x_BD, model.ln_f))
    return plain.head_argmax(normed, Float(model.lm_head), state)


class Float:
    """A head whose rows are read in float32."""

    def __init__(self, lm_head):
        self.weight, self.start, self.vocab_size = lm_head.weight.float(), lm_head.start, lm_head.vocab_size

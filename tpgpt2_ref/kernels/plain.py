"""The kernels' twins in plain torch, as gpt2.py computes them: the same names, the same arguments, the same results.

They run anywhere, in any dtype, and in a CUDA graph too. A kernel is right if it equals its twin.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

from ..attention.kv_cache import write_kv_cache
from ..noise import gumbel
from .state import DecodeState, Residual


def qkv(x: Residual, linear, state):
    return F.linear(x.read(), linear.weight, linear.bias)


def attention(qkv, kv_cache, state: DecodeState):
    """Gathers every row's pages to the cache's full width and masks what lies beyond its tokens."""
    heads, head_size = kv_cache.shape[-2:]
    write_cache(qkv, kv_cache, state.slots())
    q = qkv.chunk(3, -1)[0]
    k, v = kv_cache[:, state.block_table.long()].flatten(2, 3)  # (B, pages * block_size, heads, head_size)
    scores = torch.einsum("bhd,bthd->bht", q.unflatten(-1, (heads, head_size)).float(), k.float()) * head_size**-0.5
    future = torch.arange(k.shape[1], device=q.device) > state.positions[:, None]  # (B, T)
    p = scores.masked_fill(future[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bht,bthd->bhd", p, v.float()).flatten(1).to(q.dtype)


def gelu(x: Residual, linear, state):
    return F.gelu(F.linear(x.read(), linear.weight, linear.bias), approximate="tanh")


def add(x, linear, residual: Residual, norm, state, scaled: bool = False):
    return Residual(residual.x + F.linear(x, linear.weight, linear.bias), norm)


def partial(x, linear, bias: bool, state):
    return F.linear(x, linear.weight, linear.bias if bias else None)


def head_argmax(x: Residual, embedding, state: DecodeState):
    logits = F.linear(x.read(), embedding.weight).float()  # (B, V/n)
    token = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device) + embedding.start
    temperature = state.sampling[0]
    noisy = logits + temperature * gumbel(state.seeds, state.positions + 1, token)
    logits = torch.where(temperature > 0, noisy, logits).masked_fill(token >= embedding.vocab_size, float("-inf"))
    return order_key(logits, token).amax(1)[None]


def order_key(value: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """An int64 whose order is that of (value, -token): the largest is the argmax, the first of equals."""
    bits = value.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # int32 with the order of the floats
    return ordered.long() << 32 | (0x7FFFFFFF - token.long())


def key_value(key: torch.Tensor) -> torch.Tensor:
    """The value in a key of `order_key`."""
    ordered = (key >> 32).int()
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)


def argmax(keys, state: DecodeState):
    """Not for a CUDA graph: torch has no way to write the host's memory from the device by position."""
    token = 0x7FFFFFFF - (keys.amax(0) & 0xFFFFFFFF)
    rows = state.live.nonzero()[:, 0].cpu()
    state.tokens[rows, (state.positions.cpu() + 1)[rows]] = token.int().cpu()[rows]
    state.ids.copy_(token)
    state.positions.add_(state.live)


def embed(state: DecodeState, wte, wpe, position: bool):
    row = state.ids - wte.start
    mine = (row >= 0) & (row < wte.local)
    x = F.embedding(row.clamp(0, wte.local - 1), wte.weight).masked_fill(~mine[:, None], 0)
    return x + F.embedding(state.positions, wpe.weight) if position else x


def add_norm(x, y, norm):
    total = x if y is None else x + y
    return total, norm(total)


def write_cache(qkv, kv_cache, slot_mapping):
    k, v = (t.unflatten(-1, kv_cache.shape[-2:]) for t in qkv.chunk(3, -1)[1:])
    write_kv_cache(k, v, kv_cache, slot_mapping)

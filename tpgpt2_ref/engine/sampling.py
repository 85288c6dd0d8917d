"""From logits to the next token: greedy, or temperature with top-k and top-p, the same tokens on every rank.

Sampling is Gumbel-max: argmax(logits + temperature * noise). The noise is a hash of (seed, position, token), no
generator's state, so a sequence draws the same tokens at every TP size, in every batch, and at any place in it.
"""
from __future__ import annotations

import torch

from ..noise import gumbel
from ..request import SamplingParams

DRAWN_AT_ONCE = 32  # rows: a sort needs many times the memory of what it sorts, and is as fast in pieces
TINY = 2.0**-126  # the least temperature that a GPU tells from 0 in float32


def sample(logits: torch.Tensor, params: SamplingParams, seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """logits (B, V), each row's seed (B,) int64 and position (B,) -> next ids (B,) int64."""
    if params.temperature == 0:
        return logits.argmax(-1)
    return draw(logits, *torch.tensor([params.temperature, params.top_k, params.top_p], device=logits.device), seed,
                position)


def draw(logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor,
         seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The same with all settings on the device, so that they are data to a captured step: -> next ids (B,) int64.

    temperature (0: greedy), top_k (0: all tokens) and top_p (1: all) are numbers; seed, position (B,)
    """
    pieces = zip(*(x.split(DRAWN_AT_ONCE) for x in (logits, seed, position)))
    return torch.cat([_draw(x, temperature, top_k, top_p, s, p) for x, s, p in pieces])


def _draw(logits, temperature, top_k, top_p, seed, position) -> torch.Tensor:
    x = logits.float()  # (B, V)
    ordered, order = x.sort(dim=-1, descending=True, stable=True)
    p = ((ordered - ordered[:, :1]) / temperature.clamp(min=TINY)).softmax(-1)
    rank, token = (torch.arange(x.shape[-1], dtype=d, device=x.device) for d in (torch.float32, torch.int32))
    beyond = (top_p < 1) & (p.cumsum(-1) - p >= top_p)  # the tokens before already hold top_p
    beyond |= (top_k > 0) & (rank >= top_k)
    kept = x.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))
    noisy = kept + temperature * gumbel(seed, position, token)
    return torch.where(temperature > 0, noisy, x).argmax(-1)

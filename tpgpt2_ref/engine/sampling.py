"""From logits to the next token: greedy, or temperature with top-k and top-p, the same tokens on every rank.

Sampling is Gumbel-max: argmax(logits / temperature + noise). The noise is a hash of (seed, sequence, position,
token), no generator's state, so a sequence draws the same tokens at every TP size and in every batch.
"""
from __future__ import annotations

import torch

from ..noise import gumbel
from ..request import SamplingParams


def sample(logits: torch.Tensor, params: SamplingParams, sequence: torch.Tensor,
           position: torch.Tensor) -> torch.Tensor:
    """logits (B, V), each row's sequence number (B,) and position (B,) -> next ids (B,) int64."""
    if params.temperature == 0:
        return logits.argmax(-1)
    x = logits.float() / params.temperature
    if params.top_k:
        kth = x.topk(min(params.top_k, x.shape[-1])).values[:, -1:]
        x = x.masked_fill(x < kth, float("-inf"))
    if params.top_p < 1:
        ordered, order = x.sort(-1, descending=True)
        p = ordered.softmax(-1)
        beyond = p.cumsum(-1) - p >= params.top_p  # the tokens before already hold top_p
        x = x.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))
    token = torch.arange(x.shape[-1], dtype=torch.int32, device=x.device)
    return (x + gumbel(params.seed, sequence, position, token)).argmax(-1)

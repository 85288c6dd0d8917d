"""Noise without a generator's state: a hash of where it stands, so it is the same on every rank and in every batch."""
from __future__ import annotations

import torch


def gumbel(seed: int | torch.Tensor, sequence: torch.Tensor, position: torch.Tensor,
           token: torch.Tensor) -> torch.Tensor:
    """Gumbel noise (B, V), a hash of its place: sequence (B,), position (B,), token (V,) int32; 32 bits of the seed."""
    if not isinstance(seed, torch.Tensor):
        seed = torch.full((), seed, device=position.device)
    row = hash32(hash32(sequence.int() ^ hash32(seed.int())) ^ position.int())
    u = (hash32(row[:, None] ^ token) >> 9 & 0x7FFFFF).float()  # 23 bits: u + 0.5 is exact, and never 0 or 2**23
    return -(-((u + 0.5) / 2**23).log()).log()


def hash32(x: torch.Tensor) -> torch.Tensor:
    """Wellons' lowbias32 over int32, which wraps; >> keeps the sign, so it is masked off."""
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ (x >> 16 & 0xFFFF)

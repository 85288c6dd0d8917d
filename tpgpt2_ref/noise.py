"""Noise without a generator's state: a hash of where it stands, so it is the same on every rank and in every batch."""
from __future__ import annotations

from array import array
from hashlib import blake2b

import torch


def gumbel(seed: torch.Tensor, position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Gumbel noise (B, V), a hash of its place: seed (B,) int64, position (B,), token (V,) int32."""
    u = uniform_bits(row_hash(seed, position)[:, None], token).float()  # u + 0.5 is exact, and never 0 or 2**23
    return -(-((u + 0.5) / 2**23).log()).log()


def row_hash(seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """seed (B,) int64, position (B,) -> (B,) int32. All 64 bits of the seed count, and the two halves of it meet only
    when the position is mixed in: no two seeds draw alike at every position."""
    return hash32(hash32(seed.int() ^ hash32(position.int())) ^ hash32((seed >> 32).int()))


def uniform_bits(row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """23 bits, int32: those that the noise of a token is made of."""
    return hash32(row ^ token) >> 9 & 0x7FFFFF


def hash32(x: torch.Tensor) -> torch.Tensor:
    """Wellons' lowbias32 over int32, which wraps; >> keeps the sign, so it is masked off."""
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ (x >> 16 & 0xFFFF)


def seed_of(seed: int, prompt: array, copy: int = 0) -> int:
    """An int64 of a sequence's own, out of the user's seed (0 to 2**64 - 1), its prompt, and which copy of it it is.

    So texts of one batch don't draw alike, and none depends on where in a batch it stands, nor beside whom.
    """
    named = array("Q", [seed, copy]).tobytes() + prompt.tobytes()
    return int.from_bytes(blake2b(named, digest_size=8).digest(), "little", signed=True)

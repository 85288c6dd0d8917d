"""A linear layer of a decode step as one kernel, with what stands before and behind it:

    [LayerNorm ->] W x + b  [-> GELU | -> + residual | -> argmax]

B rows of x meet a whole matrix W (N, K), and the time is that to read W:

    gemv     1 to 4 rows of x      multiply-adds
    skinny   up to 16 rows         tensor cores, each warp a slice of K
    wide     more                  tensor cores, tiles of x and W in pieces of K, split over programs

The tile decides which: see `tiles.py`. `plain.py` has the twin of every function here, by the same name.
"""
from __future__ import annotations

import torch
import triton

from ..state import DecodeState, Residual
from ..tiles import Gemv, Skinny, Wide, tile_for
from . import gemv, skinny, wide
from .product import Product

LAUNCH = {Gemv: gemv.launch, Skinny: skinny.launch, Wide: wide.launch}


def qkv(x: Residual, linear, state: DecodeState, pdl: bool = False, tile=None) -> torch.Tensor:
    """x (B, D) -> W norm(x) + b, (B, 3D/n)."""
    return into_columns("qkv", "store", x, linear, state, pdl, tile)


def gelu(x: Residual, linear, state: DecodeState, pdl: bool = False, tile=None) -> torch.Tensor:
    """x (B, D) -> GELU(W norm(x) + b), (B, 4D/n)."""
    return into_columns("gelu", "gelu", x, linear, state, pdl, tile)


def into_columns(kind: str, then: str, x: Residual, linear, state, pdl, tile) -> torch.Tensor:
    """A column-parallel layer behind its LayerNorm: x (B, D) -> (B, N)."""
    n, k = linear.weight.shape
    out = x.x.new_empty(x.x.shape[0], n)
    tile = tile or tile_for(kind, x.x.shape[0], n, k)
    LAUNCH[type(tile)](Product(then, x.x, linear.weight, out, linear.bias), x, state, tile, pdl)
    return out


def add(x: torch.Tensor, linear, residual: Residual, norm, state: DecodeState, scaled: bool = False,
        pdl: bool = False, tile=None) -> Residual:
    """x (B, K) -> residual + W x + b, (B, D), before the LayerNorm `norm`: one rank's c_proj with what follows it.

    scaled  half of `norm` is done on the way; this tile must be wide, and that of the function here that reads it
    """
    out = torch.empty_like(residual.x)
    tile = tile or tile_for("add", x.shape[0], *linear.weight.shape)
    more = {"next_norm": norm} if scaled else {}
    p = Product("add", x, linear.weight, out, linear.bias, residual=residual.x)
    return Residual(out, norm, scaled=LAUNCH[type(tile)](p, x, state, tile, pdl, **more))


def partial(x: torch.Tensor, linear, bias: bool, state: DecodeState, pdl: bool = False, tile=None) -> torch.Tensor:
    """x (B, K) -> W x (+ b), (B, D): one rank's part of a sum over the ranks."""
    out = x.new_empty(x.shape[0], linear.weight.shape[0])
    tile = tile or tile_for("add", x.shape[0], *linear.weight.shape)
    LAUNCH[type(tile)](Product("store", x, linear.weight, out, linear.bias if bias else None), x, state, tile, pdl)
    return out


def head_argmax(x: Residual, embedding, state: DecodeState, pdl: bool = False, tile=None) -> torch.Tensor:
    """x (B, D) -> keys (programs, B) int64: the argmax of each program's part of this rank's rows of the vocabulary."""
    (n, k), batch = embedding.weight.shape, x.x.shape[0]
    tile = tile or tile_for("argmax", batch, n, k)
    out = torch.empty(triton.cdiv(n, tile.ROWS), batch, dtype=torch.int64, device=state.ids.device)
    LAUNCH[type(tile)](Product("argmax", x.x, embedding.weight, out, vocabulary=embedding.vocab_size,
                               first_token=embedding.start), x, state, tile, pdl)
    return out

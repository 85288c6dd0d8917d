"""A linear layer of a decode step as one kernel, with what stands before and behind it:

    [LayerNorm ->]  W x + b  [-> GELU | -> + residual | -> q, and k and v into the cache | -> best token]

The kernels are in `products.py`; `plain.py` has the twin of every function here, by the same name.
"""
from __future__ import annotations

import torch
import triton

from .prefill import add_norm
from .products import gemv_kernel, skinny_kernel, wide_kernel
from .state import DecodeState
from .tiles import tile_for

CHUNK = 256  # columns of K that a warp reads at once: 32 lanes of 8


def launch(then: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, norm, out: torch.Tensor,
           state: DecodeState, pdl: bool, residual: torch.Tensor | None = None, kv_cache: torch.Tensor | None = None,
           vocabulary: int = 0, first_token: int = 0, tile: dict | None = None) -> None:
    """Run `x` (B, K) through weight (N, K) and what stands around it. `tile` overrides `tile_for`."""
    (batch, k), n = x.shape, weight.shape[0]
    tile = dict(tile or tile_for(then, batch, k))
    if "STAGES" in tile and norm is not None:  # many rows meet many programs: normalize once
        x, norm = add_norm(x, None, norm, pdl)[1], None
    blocks = triton.cdiv(n, tile["ROWS"])

    def pointer(tensor):
        return x if tensor is None else tensor  # any will do: this variant never reads it

    arguments = (x, weight, pointer(bias), pointer(norm and norm.weight), pointer(norm and norm.bias),
                 norm.eps if norm else 0.0, pointer(residual), out, pointer(kv_cache),
                 0 if kv_cache is None else kv_cache.stride(0), state.block_table, state.block_table.stride(0),
                 state.positions, vocabulary, first_token, state.sampling, n)
    options = dict(K=k, NORM=norm is not None, BIAS=bias is not None, THEN=then, PAGE=state.block_size, PDL=pdl,
                   launch_pdl=pdl, num_stages=1)
    if "STAGES" in tile:
        grid = blocks, triton.cdiv(batch, tile["B"]), tile.setdefault("SPLITS", 1)
        size = grid[0] * grid[1] * grid[2] * tile["ROWS"] * tile["B"] if grid[2] > 1 else 1
        sums = x.new_empty(size, dtype=torch.float32)
        lines = triton.next_power_of_2(triton.cdiv(k, grid[2] * 64))
        wide_kernel[grid](*arguments, batch, sums, state.arrived, LINES=lines, **options, **tile)
    elif "SLICES" in tile:
        skinny_kernel[(blocks, tile.pop("GRID_Y", 1))](*arguments, batch, **options, **tile)
    else:
        gemv_kernel[(blocks,)](*arguments, B=batch, CHUNK=CHUNK, **options, **tile)


def qkv(x: torch.Tensor, norm, linear, kv_cache: torch.Tensor, state: DecodeState, pdl: bool = False, **more):
    """x (B, D) -> q (B, D/n); k and v go into this layer's cache."""
    q = x.new_empty(x.shape[0], linear.weight.shape[0] // 3)
    launch("qkv", x, linear.weight, linear.bias, norm, q, state, pdl, kv_cache=kv_cache, **more)
    return q


def gelu(x: torch.Tensor, norm, linear, state: DecodeState, pdl: bool = False, **more) -> torch.Tensor:
    """x (B, D) -> GELU(W norm(x) + b), (B, 4D/n)."""
    out = x.new_empty(x.shape[0], linear.weight.shape[0])
    launch("gelu", x, linear.weight, linear.bias, norm, out, state, pdl, **more)
    return out


def add(x: torch.Tensor, linear, residual: torch.Tensor, state: DecodeState, pdl: bool = False, **more) -> torch.Tensor:
    """x (B, K) -> residual + W x + b, (B, D): one rank's c_proj with what follows it."""
    out = torch.empty_like(residual)
    launch("add", x, linear.weight, linear.bias, None, out, state, pdl, residual=residual, **more)
    return out


def partial(x: torch.Tensor, linear, bias: bool, state: DecodeState, pdl: bool = False, **more) -> torch.Tensor:
    """x (B, K) -> W x (+ b), (B, D): one rank's part of a sum over the ranks."""
    out = x.new_empty(x.shape[0], linear.weight.shape[0])
    launch("store", x, linear.weight, linear.bias if bias else None, None, out, state, pdl, **more)
    return out


def best(x: torch.Tensor, norm, embedding, state: DecodeState, pdl: bool = False, **more) -> torch.Tensor:
    """x (B, D) -> keys (programs, B) int64: each program's best token of this rank's rows of the vocabulary."""
    tile = more.pop("tile", None) or tile_for("best", *x.shape)
    programs = triton.cdiv(embedding.weight.shape[0], tile["ROWS"])
    out = torch.empty(programs, x.shape[0], dtype=torch.int64, device=x.device)
    launch("best", x, embedding.weight, None, norm, out, state, pdl, vocabulary=embedding.vocab_size,
           first_token=embedding.start, tile=tile, **more)
    return out

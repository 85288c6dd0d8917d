"""A linear layer of a decode step as one kernel, with what stands before and behind it:

    [LayerNorm ->]  W x + b  [-> GELU | -> + residual | -> best token]

The kernels are in `products.py`; `plain.py` has the twin of every function here, by the same name.
"""
from __future__ import annotations

import torch
import triton

from .prefill import add_norm
from .products import gemv_kernel, skinny_kernel, wide_kernel
from .state import DecodeState, Scaled
from .tiles import tile_for

CHUNK = 256  # columns of K that a warp reads at once: 32 lanes of 8


def launch(then: str, x: torch.Tensor | Scaled, weight: torch.Tensor, bias: torch.Tensor | None, norm,
           out: torch.Tensor, state: DecodeState, pdl: bool, residual: torch.Tensor | None = None, vocabulary: int = 0,
           first_token: int = 0, next_norm=None, tile: dict | None = None) -> Scaled | None:
    """Run `x` (B, K) through weight (N, K) and what stands around it, into `out`. `tile` overrides `tile_for`.

    then  what comes behind: "qkv" and "store" nothing, "gelu", "add" the residual, "best" the choice of a token
    -> with next_norm, `out` as that LayerNorm's `Scaled`; otherwise None
    """
    x, left = (x.x, x) if isinstance(x, Scaled) else (x, None)
    (batch, k), n = x.shape, weight.shape[0]
    tile = dict(tile or tile_for(then, batch, n, k))
    wide = "STAGES" in tile
    norm_weight, norm_bias, eps = (norm.weight, norm.bias, norm.eps) if norm else (None, None, 0.0)
    if wide and norm is not None and left is not None:
        x, (norm_weight, norm_bias) = left.scaled, folded(norm, weight)
    elif wide and norm is not None:  # many rows meet many programs: normalize once
        x, norm = add_norm(x, None, norm, pdl)[1], None
    blocks = triton.cdiv(n, tile["ROWS"])

    def pointer(tensor):
        return x if tensor is None else tensor  # any will do: this variant never reads it

    arguments = (x, weight, pointer(bias), pointer(norm_weight), pointer(norm_bias), eps, pointer(residual), out,
                 state.positions, vocabulary, first_token, state.sampling, n)
    options = dict(K=k, NORM=norm is not None, BIAS=bias is not None, THEN="store" if then == "qkv" else then, PDL=pdl,
                   launch_pdl=pdl, num_stages=1)
    if wide:
        grid = blocks, triton.cdiv(batch, tile["B"]), tile.setdefault("SPLITS", 1)
        size = grid[0] * grid[1] * grid[2] * tile["ROWS"] * tile["B"] if grid[2] > 1 else 1
        sums = x.new_empty(size, dtype=torch.float32)
        lines = triton.next_power_of_2(triton.cdiv(k, grid[2] * 64))
        leaves = Scaled(out, torch.empty_like(out)) if next_norm is not None else None
        wide_kernel[grid](*arguments, batch, sums, state.arrived, state.moments[state.turn],
                          state.moments[1 - state.turn], pointer(leaves and next_norm.weight),
                          pointer(leaves and leaves.scaled), LINES=lines, LEAVE=leaves is not None, **options, **tile)
        if norm is not None:
            state.turn = 1 - state.turn  # the other two are zero now
        return leaves
    if "SLICES" in tile:
        skinny_kernel[(blocks, 1)](*arguments, batch, **options, **tile)
    else:
        gemv_kernel[(blocks,)](*arguments, B=batch, CHUNK=CHUNK, **options, **tile)
    return None


def folded(norm, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """s = W weight and t = W bias of a LayerNorm before W (N, K), both (N,) fp32: computed once, and kept."""
    known = norm.__dict__.setdefault("folded", [])
    for w, s, t in known:
        if w is weight:
            return s, t
    pairs = [(part.float() @ norm.weight.float(), part.float() @ norm.bias.float()) for part in weight.split(4096)]
    known.append((weight, *(torch.cat(parts) for parts in zip(*pairs))))
    return known[-1][1:]


def tensor_of(x: torch.Tensor | Scaled) -> torch.Tensor:
    return x.x if isinstance(x, Scaled) else x


def qkv(x: torch.Tensor, norm, linear, state: DecodeState, pdl: bool = False, **more) -> torch.Tensor:
    """x (B, D) -> W norm(x) + b, (B, 3D/n)."""
    out = tensor_of(x).new_empty(tensor_of(x).shape[0], linear.weight.shape[0])
    launch("qkv", x, linear.weight, linear.bias, norm, out, state, pdl, **more)
    return out


def gelu(x: torch.Tensor, norm, linear, state: DecodeState, pdl: bool = False, **more) -> torch.Tensor:
    """x (B, D) -> GELU(W norm(x) + b), (B, 4D/n)."""
    out = tensor_of(x).new_empty(tensor_of(x).shape[0], linear.weight.shape[0])
    launch("gelu", x, linear.weight, linear.bias, norm, out, state, pdl, **more)
    return out


def add(x: torch.Tensor, linear, residual: torch.Tensor, state: DecodeState, pdl: bool = False, **more):
    """x (B, K) -> residual + W x + b, (B, D): one rank's c_proj with what follows it.

    next_norm  the LayerNorm behind it: out comes back as `Scaled`, for the function that applies it. Both must have
               wide tiles
    """
    out = torch.empty_like(residual)
    return launch("add", x, linear.weight, linear.bias, None, out, state, pdl, residual=residual, **more) or out


def partial(x: torch.Tensor, linear, bias: bool, state: DecodeState, pdl: bool = False, **more) -> torch.Tensor:
    """x (B, K) -> W x (+ b), (B, D): one rank's part of a sum over the ranks."""
    out = x.new_empty(x.shape[0], linear.weight.shape[0])
    launch("store", x, linear.weight, linear.bias if bias else None, None, out, state, pdl, **more)
    return out


def best(x: torch.Tensor, norm, embedding, state: DecodeState, pdl: bool = False, **more) -> torch.Tensor:
    """x (B, D) -> keys (programs, B) int64: each program's best token of this rank's rows of the vocabulary."""
    batch, k = tensor_of(x).shape
    tile = more.pop("tile", None) or tile_for("best", batch, embedding.weight.shape[0], k)
    programs = triton.cdiv(embedding.weight.shape[0], tile["ROWS"])
    out = torch.empty(programs, batch, dtype=torch.int64, device=state.ids.device)
    launch("best", x, embedding.weight, None, norm, out, state, pdl, vocabulary=embedding.vocab_size,
           first_token=embedding.start, tile=tile, **more)
    return out

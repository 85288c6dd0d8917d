"""What the kernels of this room are told of a linear layer and of what stands around it."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..state import DecodeState, Residual


@dataclass(frozen=True)
class Product:
    """[LayerNorm ->] W x + b [-> GELU | -> + residual | -> argmax]

    then  what comes behind: "store" nothing, "gelu", "add" the residual, "argmax" each program's best token
    """

    then: str
    x: torch.Tensor  # (B, K)
    weight: torch.Tensor  # (N, K)
    out: torch.Tensor  # (B, N), or the keys of "argmax", (programs, B)
    bias: torch.Tensor | None = None  # (N,)
    norm_weight: torch.Tensor | None = None  # (K,) of the LayerNorm before, None without; (N,) where it is folded
    norm_bias: torch.Tensor | None = None
    eps: float = 0.0
    residual: torch.Tensor | None = None  # (B, N)
    vocabulary: int = 0  # tokens from here on are padding
    first_token: int = 0  # row 0 of W

    def behind(self, x: torch.Tensor | Residual) -> Product:
        """With x (B, K) in front; of a residual, with its LayerNorm in the kernel where no kernel before applied it."""
        if not isinstance(x, Residual):
            return replace(self, x=x)
        if x.normed is not None:
            return replace(self, x=x.normed)
        return replace(self, x=x.x, norm_weight=x.norm.weight, norm_bias=x.norm.bias, eps=x.norm.eps)

    def arguments(self, state: DecodeState) -> tuple:
        """What every kernel of this room takes first, in their order. For a tensor that is not there any will do:
        this variant of the kernel never reads it."""
        bias, norm_weight, norm_bias, residual = (self.x if t is None else t for t in (
            self.bias, self.norm_weight, self.norm_bias, self.residual))
        return (self.x, self.weight, bias, norm_weight, norm_bias, self.eps, residual, self.out, state.positions,
                self.vocabulary, self.first_token, state.sampling, state.seeds, self.weight.shape[0])

    def options(self, pdl: bool) -> dict:
        """What every kernel of this room is compiled for."""
        return dict(K=self.x.shape[1], NORM=self.norm_weight is not None, BIAS=self.bias is not None, THEN=self.then,
                    PDL=pdl, launch_pdl=pdl, num_stages=1)

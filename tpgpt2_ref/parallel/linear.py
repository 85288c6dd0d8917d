"""Diagram 2's linear layers: a weight cut over the ranks, and what must be communicated because of the cut.

    column  Y = X [A_0 | A_1]          rank r: Y_r = X A_r           nothing, or an all-gather of Y
    row     Y = [X_0 | X_1] [A_0; A_1] rank r: X_r A_r               an all-reduce: Y = sum_r X_r A_r

Weights are stored (out, in), as torch.nn.functional.linear wants them; GPT-2's checkpoints store (in, out)
("Conv1D"), and each layer's `load` reads just its shard, transposed. A dimension that the ranks don't divide
is padded with zeros, which change no result: a zero column gives a zero feature, a zero row adds nothing.
Source: Shoeybi et al. 2019, arXiv 1909.08053, section 3.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..config import padded
from .collectives import all_gather, all_reduce, split_tensor_along_last_dim


def shard(size: int, world, multiple: int = 1) -> tuple[int, int, int]:
    """(local, start, stop): the width of every rank's shard of a padded dimension, a multiple of `multiple`,
    and this rank's real part of it in the checkpoint."""
    local = padded(size, world.size * multiple) // world.size
    start = min(world.rank * local, size)
    return local, start, min(start + local, size)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class ColumnParallelLinear(nn.Module):
    """Y_r = X A_r + b_r, this rank's output features. (T, in) -> (T, out / size), or (T, out) if gathered.

    gather_output  all-gather Y, so that every rank holds all `out` features
    multiple       pad the shard's width to a multiple of this
    """

    def __init__(self, in_features: int, out_features: int, world, gather_output: bool = False, multiple: int = 1):
        super().__init__()
        self.world, self.gather_output, self.out_features, self.name = world, gather_output, out_features, ""
        self.local, self.start, self.stop = shard(out_features, world, multiple)
        self.weight = parameter(self.local, in_features)
        self.bias = parameter(self.local)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight, self.bias)  # (T, in) -> (T, local)
        return all_gather(y, self.world, self.name)[..., : self.out_features] if self.gather_output else y

    def load(self, weight, bias):
        """weight, bias: lazy tensors (in, out) and (out,) of which only this rank's columns are read."""
        self.weight.zero_(), self.bias.zero_()
        n = self.stop - self.start
        self.weight[:n] = weight[:, self.start : self.stop].T
        self.bias[:n] = bias[self.start : self.stop]


class QKVParallelLinear(ColumnParallelLinear):
    """Diagram 2, step 1 (`c_attn`): one product for q, k and v of this rank's heads.

    (T, D) -> (T, 3 * heads * head_size), columns [q heads | k heads | v heads]. The checkpoint's matrix is
    [Q | K | V] over all heads, so a rank's shard is three pieces: a naive half would give rank 0 all of Q.
    Heads that the ranks don't divide are padded with heads of zeros (25 at TP=2: 13 each, the last one empty).
    """

    def __init__(self, hidden_size: int, head_size: int, num_heads: int, world):
        self.heads, first, last = shard(num_heads, world)
        super().__init__(hidden_size, 3 * self.heads * world.size * head_size, world)
        self.start, self.stop, self.all = first * head_size, last * head_size, num_heads * head_size

    def load(self, weight, bias):
        self.weight.zero_(), self.bias.zero_()
        width, n = self.local // 3, self.stop - self.start
        for i in range(3):  # q, k, v
            columns = slice(i * self.all + self.start, i * self.all + self.stop)
            self.weight[i * width : i * width + n] = weight[:, columns].T
            self.bias[i * width : i * width + n] = bias[columns]


class RowParallelLinear(nn.Module):
    """Y = sum_r X_r A_r + b (`c_proj`). (T, in / size) -> (T, out), the same on every rank.

    input_is_parallel  X_r is already this rank's slice; False (as the diagram draws it): X is whole and split here
    reduce_results     all-reduce the partial products; False leaves them partial
    multiple           pad the shard's width to a multiple of this, as the column-parallel layer before did
    The bias is added on rank 0 alone, so that the sum counts it once.
    """

    def __init__(self, in_features: int, out_features: int, world, input_is_parallel: bool = True,
                 reduce_results: bool = True, multiple: int = 1):
        super().__init__()
        self.world, self.name = world, ""
        self.input_is_parallel, self.reduce_results = input_is_parallel, reduce_results
        self.local, self.start, self.stop = shard(in_features, world, multiple)
        self.weight = parameter(out_features, self.local)
        self.bias = parameter(out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.input_is_parallel:
            x = F.pad(x, (0, self.local * self.world.size - x.shape[-1]))
            x = split_tensor_along_last_dim(x, self.world)  # (T, in) -> (T, local)
        y = self.partial(x)
        return all_reduce(y, self.world, self.name) if self.reduce_results else y

    def partial(self, x: torch.Tensor) -> torch.Tensor:
        """X_r A_r, and on rank 0 the bias: what the ranks then sum. (T, local) -> (T, out)."""
        return F.linear(x, self.weight, self.bias if self.world.rank == 0 else None)

    def load(self, weight, bias):
        """weight, bias: lazy tensors (in, out) and (out,) of which only this rank's rows are read."""
        self.weight.zero_()
        self.weight[:, : self.stop - self.start] = weight[self.start : self.stop].T
        self.bias.copy_(bias[:])

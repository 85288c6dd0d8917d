"""Witness: two live ranks of a chapter, on whatever device they run."""
from __future__ import annotations

from .measured import Measured


def gathered(ranks) -> Measured:
    """[1, 2] and [3, 4] after an all-gather, on both ranks."""
    return Measured(on(ranks, "all_gather(torch.tensor([[1., 2.], [3., 4.]][world.rank], device=world.device), world)"),
                    ranks.describe())


def summed(ranks) -> Measured:
    """[1, 2, 3] and [4, 5, 6] after an all-reduce, on both ranks."""
    code = "all_reduce(torch.tensor([[1., 2., 3.], [4., 5., 6.]][world.rank], device=world.device), world)"
    return Measured(on(ranks, code), ranks.describe())


def same_bits(ranks) -> Measured:
    """Whether both ranks hold the same bits after 25 sums of random vectors of D, of which no two are alike."""
    ranks.run("_ = torch.manual_seed(world.rank)")
    code = "torch.stack([all_reduce(torch.randn(1, 768, device=world.device), world) for _ in range(25)])"
    first, second = on(ranks, code)
    return Measured(first == second, ranks.describe())


def on(ranks, expression: str) -> list:
    """That tensor by rank, as lists."""
    ranks.run("from tpgpt2_ref.parallel.collectives import all_gather, all_reduce")
    return ranks.get(f"({expression}).tolist()")

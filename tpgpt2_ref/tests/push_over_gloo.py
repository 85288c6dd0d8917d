"""A stand-in for push on CPU ranks, in a file that ranks import in no time."""
from __future__ import annotations

from tpgpt2_ref.parallel.all_reduce import AllReduce
from tpgpt2_ref.parallel.all_reduce.push import add_norm


class PushOverGloo(AllReduce):
    """push's interface, fused sum and gather included, over the group's own sum."""

    name = "push"
    gathers = True

    def __init__(self, world):
        self.world, self.sum = world, world.all_reduces[-1]

    def __call__(self, x):
        return self.sum(x)

    def fuses(self, partial):
        return True

    def fused_add_norm(self, partial, bias, residual, weight, bias_ln, eps, pdl=False):
        return add_norm(self.sum(partial), bias, residual, weight, bias_ln, eps)

    def gather(self, x):
        stacked = x.new_zeros(self.world.size, *x.shape)
        stacked[self.world.rank] = x
        return self.sum(stacked)

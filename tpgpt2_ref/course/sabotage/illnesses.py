"""What a patient can have. Each bug is a mistake that people make when they cut a model, put into one
place of one layer.

`signs` are what the instruments show: where a bug says nothing about a sign, it is as in a healthy patient. No two bugs
have the same signs.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...parallel.collectives import all_gather, all_reduce

HEALTHY = {"hangs": False, "repeats": True, "shapes": "right", "sums": 0, "gathers": 0, "begins": "nowhere",
           "alike": False, "cache": "right", "agree": True}


@dataclass(frozen=True)
class Bug:
    name: str
    what: str  # the mistake, as it stands in the code
    chapter: str  # where the book explains it
    signs: dict
    infect: Callable  # (model, whole model, layer, world): put the bug into one rank's model


def naive_half(model, whole, layer, world):
    sick, well = model.h[layer].attn.c_attn, whole.h[layer].attn.c_attn
    rows = slice(world.rank * sick.local, (world.rank + 1) * sick.local)
    sick.weight.copy_(well.weight[rows]), sick.bias.copy_(well.bias[rows])


def bias_twice(model, whole, layer, world):
    sick = model.h[layer].attn.c_proj
    sick.forward = lambda x: all_reduce(F.linear(x, sick.weight, sick.bias), sick.world, sick.name)


def sum_missing(model, whole, layer, world):
    model.h[layer].mlp.c_proj.reduce_results = False


def gather_for_sum(model, whole, layer, world):
    sick = model.h[layer].attn.c_proj

    def forward(x):
        y = F.linear(x, sick.weight, sick.bias if world.rank == 0 else None)  # (T, D/n) -> (T, D)
        return all_gather(y, sick.world, sick.name)[..., : y.shape[-1]]

    sick.forward = forward


def sum_before_gelu(model, whole, layer, world):
    sick = model.h[layer].mlp.c_fc
    sick.forward = lambda x: all_reduce(F.linear(x, sick.weight, sick.bias), sick.world, sick.name)


def foreign_kv(model, whole, layer, world):
    sick, well = model.h[layer].attn.c_attn, whole.h[layer].attn.c_attn
    width, other = sick.local // 3, (world.rank + 1) % world.size
    for third in (1, 2):  # k, v
        mine = slice(third * width, (third + 1) * width)
        theirs = slice((third * world.size + other) * width, (third * world.size + other + 1) * width)
        sick.weight[mine], sick.bias[mine] = well.weight[theirs], well.bias[theirs]


def unpadded_vocabulary(model, whole, layer, world):
    wte = model.wte
    wte.local = wte.vocab_size // world.size
    wte.start = world.rank * wte.local
    rows = whole.wte.weight[wte.start : wte.start + wte.local].clone()
    wte.weight = torch.nn.Parameter(rows, requires_grad=False)
    model.lm_head.weight = wte.weight


def embedding_offset(model, whole, layer, world):
    model.wte.start = (world.rank + 1) % world.size * model.wte.local


def another_order(model, whole, layer, world):
    sick = model.h[layer].attn.c_proj

    def forward(x):
        y = F.linear(x, sick.weight, sick.bias if world.rank == 0 else None)  # (T, D/n) -> (T, D)
        if world.rank == 0:
            total = all_reduce(y.clone(), sick.world, sick.name)
            all_gather(y[:1, :1], sick.world, sick.name)
        else:
            all_gather(y[:1, :1], sick.world, sick.name)
            total = all_reduce(y.clone(), sick.world, sick.name)
        return total

    sick.forward = forward


def stale_push(model, whole, layer, world):
    model.world.all_reduces[0].late_call = 2 * layer + 2  # the sum of this layer's MLP, in the first forward


def shard_twice(model, whole, layer, world):
    sick, well = model.h[layer].mlp.c_fc, whole.h[layer].mlp.c_fc
    with torch.no_grad():
        sick.weight.copy_(well.weight[: sick.local]), sick.bias.copy_(well.bias[: sick.local])


BUGS = (
    Bug("naive-qkv-half", "One layer's fused QKV matrix was cut in the middle, before q, k and v were parted.",
        "qkv_split", {"begins": "attention", "cache": "wrong"}, naive_half),
    Bug("bias-twice", "One row-parallel layer adds its bias on every rank, so the sum counts it twice.",
        "why_split", {"begins": "attention", "alike": True}, bias_twice),
    Bug("mlp-sum-missing", "One MLP's second matrix leaves its partial products as they are: nobody sums.",
        "timeline", {"begins": "MLP", "sums": -1, "agree": False}, sum_missing),
    Bug("gather-for-sum", "One attention gathers the partial products and keeps the first instead of summing.",
        "collectives", {"begins": "attention", "sums": -1, "gathers": 1}, gather_for_sum),
    Bug("sum-before-gelu", "One MLP sums after its first matrix, before GELU: features that have nothing to do with "
        "one another.", "why_split", {"begins": "MLP", "sums": 1}, sum_before_gelu),
    Bug("foreign-kv", "In one layer each rank has its own queries, and the other rank's keys and values.",
        "qkv_split", {"begins": "attention", "cache": "foreign"}, foreign_kv),
    Bug("unpadded-vocabulary", "257 tokens were dealt to two ranks as 128 each, rounded down: the last token lives "
        "nowhere.", "quickstart", {"begins": "embedding", "shapes": "narrow"}, unpadded_vocabulary),
    Bug("embedding-offset", "Each rank believes that it holds the other's rows of the vocabulary.",
        "qkv_split", {"begins": "embedding"}, embedding_offset),
    Bug("calls-in-another-order", "In one layer rank 1 calls a gather and then a sum, and rank 0 the sum first.",
        "hangs", {"hangs": True}, another_order),
    Bug("stale-push", "A sum took a word out of its mailbox that was two calls old: the new one had not arrived.",
        "push", {"begins": "MLP", "repeats": False, "agree": False}, stale_push),
    Bug("shard-loaded-twice", "Both ranks loaded the first half of one MLP's first matrix.",
        "why_split", {"begins": "MLP"}, shard_twice),
)

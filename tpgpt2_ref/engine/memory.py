"""How the memory that is free is shared out: pages of the cache, one forward's tensors, the prefills' graphs, logits.

    free = spare + fixed + rows * row + blocks * page + forward + graphs        forward = graphs >= tokens * token

vLLM measures a forward of the most tokens once, and gives the cache what that left (`determine_available_memory`). Here
a forward's size is an upper bound, counted from the model's shape: nothing runs for it, every rank finds the same, and
a test holds the bound against what the allocator saw. Where memory is short, a prefill takes fewer prompts at once.
"""
from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from .sampling import DRAWN_AT_ONCE

GPU_SHARE, HOST_SHARE = 0.9, 0.5  # of a GPU's free memory, of the host's whole memory, that is shared out here
KERNELS = 256 << 20  # bytes of a GPU: the kernels' code as it is loaded, cuBLAS's workspaces, the graphs' nodes
ROWS, FORWARD = 1 / 8, 1 / 16  # of the room: at most for the rows' logits; at least for a forward, and for the graphs
MOST_TOKENS = 1 << 18  # of one prefill: beyond, a GPU has long been busy
SORTED = 64  # bytes for each logit of the rows that are drawn at once: sorted, with what the sort itself needs
NUMBERS = 1024  # bytes a token: ids, positions and slots, as sent and in each graph's own; a mask's list of blocks


@dataclass(frozen=True)
class Needs:
    """Bytes, of one rank."""

    page: int
    token: int  # of a prefill
    last: int  # of a prompt in it, beside its tokens: what its last token takes
    row: int  # of a sequence that runs
    fixed: int

    def prefill(self, tokens: int, rows: int) -> int:
        """Of a forward of so many tokens, padding included, with the logits of so many rows."""
        return tokens * self.token + rows * self.last


@dataclass(frozen=True)
class Plan:
    """blocks  pages of the cache; rows  sequences that may run at once; tokens  of the prompts of one prefill;
    graphs  bytes that the prefills' graphs may hold."""

    blocks: int
    rows: int
    tokens: int
    graphs: int


def needs_of(model) -> Needs:
    """Upper bounds, from the shape: D hidden size, A this rank's heads' width, I its part of the MLP's.

    A token: the residual, its norm, the MLP's sum, and the next layer's two (5D); q, k, v, the next layer's too, and
    the attention's result (7A); before and behind the GELU (2I). As drawn A is D, and covers what is gathered.
    A row's logits are there once, or with several ranks thrice, while they are gathered: in a prefill, which pads to
    twice the rows, and in decode graphs of three times as many, of all their sizes.
    """
    config, impl = model.config, model.impl
    size, width = impl.dtype.itemsize, impl.num_heads * impl.head_size
    token = size * (5 * config.n_embd + 7 * width + 2 * model.h[0].mlp.c_fc.local) + 8 * impl.num_heads + NUMBERS
    vocabulary = model.wte.local * model.world.size
    alone, one_row = (impl.scratch(rows, config.n_positions) for rows in (0, 1))
    last = size * vocabulary * (1 if model.world.size == 1 else 3) + 256 * width + one_row - alone
    fixed = 2 * DRAWN_AT_ONCE * vocabulary * SORTED + alone  # drawn eagerly, and in a graph
    page = 2 * config.n_layer * impl.block_size * width * impl.kv_dtype.itemsize
    return Needs(page, token, last, 5 * last, fixed + (KERNELS if model.world.device.type == "cuda" else 0))


def free_bytes(device: torch.device) -> int:
    """That may be shared out now: of a GPU what no tensor of anybody has, of a host half of all that it has."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) \
            - torch.cuda.memory_allocated(device)
        return int(GPU_SHARE * free)
    if hasattr(os, "sysconf"):
        return int(HOST_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return 1 << 32  # Windows does not say: 4 GiB


def share(free: int, needs: Needs, blocks: int, rows: int, longest: int, given: bool = False) -> Plan:
    """Share out `free` bytes among up to `blocks` pages and `rows` sequences, and forwards of `longest` tokens or more.

    given  there are `blocks` pages whatever is free: somebody asked for them
    """
    room = max(0, free - needs.fixed)
    rows = max(1, min(rows, int(ROWS * room) // needs.row))
    room = max(0, room - rows * needs.row)
    least = max(int(FORWARD * room), padded(longest) * needs.token)
    if not given:
        blocks = max(0, min(blocks, (room - 2 * least) // needs.page))
    left = max(0, room - blocks * needs.page) // 2
    tokens = (left // needs.token - 512) * 8 // 9  # `padded` of them is what there is room for
    return Plan(blocks, rows, max(longest, min(MOST_TOKENS, tokens)), left)


def padded(tokens: int) -> int:
    """The most tokens of a bucket for so many, see `prefill_graph.bucket_of`."""
    return tokens + tokens // 8 + 512

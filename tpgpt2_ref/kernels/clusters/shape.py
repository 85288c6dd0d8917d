"""What a rank's part of a model is to the cluster kernels: the constants that they are compiled with."""
from __future__ import annotations

from dataclasses import dataclass

import torch

HEAD = 64  # the one head size that they know
BLOCKS = 8  # of a cluster
UNITS = 32  # hidden units of the MLP that a block takes
WARPS = 8  # of a block
THREADS = 32 * WARPS + 32  # with the warp that finds LayerNorm's moments
MOST_ROWS = 4  # of a batch that they take
SHARED = 227 * 1024  # bytes of shared memory that a multiprocessor of Hopper gives its blocks


@dataclass(frozen=True)
class Shape:
    """hidden, heads, inner, rows: D, and this rank's heads, hidden units and rows of the vocabulary."""

    hidden: int
    heads: int
    inner: int
    rows: int
    layers: int
    page: int
    batch: int
    ranks: int
    rank: int
    half: bool  # float16, else bfloat16

    @classmethod
    def of(cls, model, batch: int, page: int) -> Shape:
        mlp, world = model.h[0].mlp, model.world
        return cls(model.config.n_embd, model.impl.num_heads, mlp.c_fc.local, model.lm_head.local,
                   model.config.n_layer, page, batch, world.size, world.rank, model.impl.dtype == torch.float16)

    @property
    def clusters(self) -> int:
        """Of an MLP: the last one may have blocks without units."""
        return -(-self.inner // (UNITS * BLOCKS))

    @property
    def slots(self) -> int:
        """Contributions to the residual stream, of all ranks, of the kernel that has most."""
        return self.ranks * max(self.heads, self.clusters)

    @property
    def flagged(self) -> bool:
        """Whether a value in a slot has a flag beside it: other GPUs write it, and no kernel's end says it came."""
        return self.ranks > 1

    @property
    def set_bytes(self) -> int:
        """Of one set of slots: fp32, and where they are flagged 4 bytes more beside each value."""
        return self.slots * self.batch * self.hidden * (8 if self.flagged else 4)

    @property
    def kernels(self) -> int:
        """Of a step that write to the stream or read it: the embedding, two a layer, the head."""
        return 2 * self.layers + 2

    @staticmethod
    def blocks(kernel: str) -> int:
        """Of a cluster."""
        return {"embed": 1, "head": 4}.get(kernel, BLOCKS)

    def grid(self, kernel: str) -> int:
        """Blocks. The head's run at once: an H200 holds 62 clusters of 4, and one more would wait for the others."""
        tiles = self.rows // 8 // WARPS
        return {"embed": 1, "attention": self.heads * BLOCKS, "mlp": self.clusters * BLOCKS,
                "head": max(1, min(62, tiles // 4)) * 4}[kernel]

    @property
    def room(self) -> int:
        """Bytes of shared memory for a block: two are to fit on a multiprocessor, often of two kernels. XL's, which are
        more than all multiprocessors hold at once, were faster with less each."""
        return SHARED // 2 - 1024 if self.hidden <= 1280 else 90000

    def defines(self, kernel: str) -> dict[str, int]:
        slots = {"mlp": self.ranks * self.heads}.get(kernel, self.ranks * self.clusters)
        return {"D": self.hidden, "HEADS": self.heads, "INNER": self.inner, "ROWS": self.rows, "PAGE": self.page,
                "BATCH": self.batch, "RANKS": self.ranks, "RANK": self.rank, "SLOTS": slots,
                "ROOM": self.room, "CLUSTER": self.blocks(kernel),
                "FLAGGED": int(self.flagged)} | ({"HALF": 1} if self.half else {})


def rows_worth_it(hidden: int, ranks: int) -> int:
    """Up to how many rows the cluster kernels were faster than a kernel a product, on one and on two H200 (`bench
    decode`, rungs +pdl and +clusters). On more ranks nobody has measured it."""
    if ranks == 1:
        return 4 if hidden <= 768 else 2
    return (4 if hidden <= 768 else 1 if hidden <= 1024 else 0) if ranks == 2 else 0


def misfit(model) -> str | None:
    """Why this model has not the shape that the cluster kernels want, or None."""
    config, impl = model.config, model.impl
    if impl.head_size != HEAD:
        return f"the cluster kernels take heads of {HEAD}, not {impl.head_size}"
    if config.n_embd % 64 or config.n_embd > 2048:
        return f"the cluster kernels take a hidden size that is a multiple of 64, up to 2048, not {config.n_embd}"
    if model.h[0].mlp.c_fc.local % UNITS:
        return f"the cluster kernels take a rank's hidden units by {UNITS}, not {model.h[0].mlp.c_fc.local}"
    return None

"""A cluster kernel to be watched on a CPU: the real source in the emulator, on a layer that is small enough.

    t = tiny()                                   one layer, two heads of 64, 512 hidden units
    Watched(t).run(slots, seed=3)                what `source/mlp.cu` makes of them, blocks and copies in a random order
    Watched(t, without="cluster_wait();")        the same with one line of the source left out
"""
from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ..attention.metadata import AttentionMetadata, decode_metadata
from ..config import GPT2Config
from ..engine.cluster_step import ClusterSteps
from ..errors import UserError
from ..kernels.clusters.cache import SOURCE
from ..kernels.clusters.emulated import emulated
from ..kernels.clusters.step import ClusterStep
from ..kernels.state import DecodeState
from ..parallel.world import World
from ..weights import Checkpoint, load_model

CONFIG = GPT2Config(n_layer=1, n_head=2, n_embd=128, n_positions=64, vocab_size=256)
CACHED = 21  # tokens of each sequence


@dataclass(frozen=True)
class Tiny:
    """A model in the middle of a text: B sequences with a cache, and a newest token each."""

    model: torch.nn.Module
    kv_cache: torch.Tensor
    state: DecodeState
    meta: AttentionMetadata  # what gpt2.py wants to know of the same step


def tiny(dtype: str = "float32", batch: int = 1) -> Tiny:
    """Random weights, the same ones whatever the batch. On the CPU."""
    model = load_model(Checkpoint(CONFIG, None, {}), World.single(), dtype=dtype, backend="NAIVE")
    state = DecodeState.empty(batch, CONFIG.n_head, CONFIG.n_positions, torch.device("cpu"))
    pages = state.block_table.shape[1]
    [kv_cache] = model.new_kv_caches(pages * batch)
    kv_cache.copy_(torch.randn(kv_cache.shape, generator=torch.Generator().manual_seed(0)))
    state.block_table.copy_(torch.arange(pages * batch).view(batch, pages))
    state.ids.copy_(torch.arange(77, 77 + batch))
    state.positions.fill_(CACHED), state.live.fill_(1)
    meta = decode_metadata(state.positions, state.block_table, CONFIG.n_positions, state.block_size)
    meta.kernel = model.impl.build(meta)
    return Tiny(model, kv_cache, state, meta)


class Watched:
    """The MLP's kernel of a `tiny("bfloat16")` layer.

    without  a piece of its source that is left out
    """

    def __init__(self, small: Tiny, without: str = ""):
        if small.model.impl.dtype == torch.float32:
            raise UserError('the cluster kernels compute in 16 bits: tiny("bfloat16")')
        self.without = without
        stream = ClusterSteps(small.model, [small.kv_cache], self._load).stream
        self.step = ClusterStep(small.model, [small.kv_cache], small.state, stream, self._load)  # owns what is read
        shape, (_, (self.kernel, self.how), _) = self.step.shape, self.step.calls
        # two sets of slots, which a step's kernels write in turn
        self.written, self.read = stream.buffer[: 2 * shape.set_bytes].view(torch.float32).view(
            2, shape.slots, shape.batch, shape.hidden)

    def _load(self, name: str, defines: dict):
        """Of the step's kernels only this one is compiled."""
        if name != "mlp":
            return NotCompiled
        text = (SOURCE / "mlp.cu").read_text()
        if text.count(self.without) != 1 and self.without:
            raise UserError(f"mlp.cu has {self.without!r} {text.count(self.without)} times, not once")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "mlp.cu"
            file.write_text(text.replace(self.without, "") if self.without else text)
            return emulated(file, defines)

    def run(self, slots: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """slots (heads, B, D), what attention left -> (clusters, B, D), what the kernel leaves.

        seed  of chance: who runs next, when bytes arrive. Raises RuntimeError with what the kernel did wrong.
        """
        self.read.copy_(slots)
        self.kernel.launch(**self.how, seed=seed, late=[self.read])
        return self.written.clone()

    def first_fault(self, slots: torch.Tensor, seeds: int = 20) -> str:
        """What goes wrong, and in which order of events; "" if nothing does in any of so many."""
        for seed in range(seeds):
            try:
                missing = int(self.run(slots, seed).isnan().sum())
            except RuntimeError as e:
                return str(e)
            if missing:
                return f"mlp, seed {seed}: {missing} of {slots.numel()} numbers were read before they were there"
        return ""


class NotCompiled:
    """A kernel that nobody launches."""

    constant = staticmethod(lambda name: 0)

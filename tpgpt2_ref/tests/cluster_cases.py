"""Cases of the cluster kernels: a model's ranks with rows of any context, a step's kernels one by one, their twins.

A row is a number: its token, seed, cached keys and values come from it alone, wherever in a batch or in the cache it
stands, so that a row's bits can be compared between batches. Everything is the same on any device.
"""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from tpgpt2_ref.config import GPT2Config
from tpgpt2_ref.engine.ladder import LADDER
from tpgpt2_ref.kernels.clusters import plain as twin
from tpgpt2_ref.kernels.clusters.emulated import emulated, why_no_emulator
from tpgpt2_ref.kernels.clusters.shape import Shape
from tpgpt2_ref.kernels.clusters.step import ClusterStep, Stream
from tpgpt2_ref.kernels.plain import key_value
from tpgpt2_ref.kernels.state import DecodeState
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.weights import Checkpoint, load_model

# Three heads, so that one of four ranks has none; 6 steps of a product, which 8 warps don't divide; hidden units whose
# last cluster has blocks without any; three passes over the tokens of a full cache.
SMALL = GPT2Config(n_layer=2, n_head=3, n_embd=192, n_positions=520, vocab_size=900, n_inner=640, eos_token_id=None)
CONTEXTS = (0, 1, 3, 4, 5, 15, 16, 17, 255, 256, 257, 511, 512, 519)  # tokens that are cached
PATIENCE = 30.0  # seconds of patience with a rank
# What is no cluster of it is plain torch.
CLUSTERS = replace(LADDER[-1], fused=(), fused_sum=False, scaled_norm=False, pdl=False)
emulator = pytest.mark.skipif(why_no_emulator() is not None, reason=why_no_emulator() or "")


def load(name, defines):
    """A kernel in the emulator. One row's is the one that `bench phases` takes: compiling is what costs time here."""
    return emulated(name, defines | {"PROFILE": defines["BATCH"] == 1})


def build_model(config=SMALL, dtype="bfloat16", world=None, loud=4.0, backend=None):
    """Seeded weights, `loud` times as far from a LayerNorm's 1 or from 0 as GPT-2's: softmax then has favourites."""
    model = load_model(Checkpoint(config, None, {}), world or World.single(), dtype=dtype, backend=backend)
    for name, p in model.named_parameters():
        base = float("ln_" in name and name.endswith("weight"))
        p.sub_(base).mul_(loud).add_(base)
    return model


@dataclass
class Row:
    number: int  # what it is
    cached: int  # tokens before its newest
    live: bool = True

    def noise(self, layer: int, shape) -> torch.Tensor:
        random = torch.Generator().manual_seed(1000 * self.number + layer)
        return torch.randn(shape, generator=random)


def fill(state: DecodeState, model, caches, rows, temperature: float = 0.0, scramble: int = 0) -> None:
    """Put rows into a state and the caches, in pages that `scramble` chooses. A dead row is as the engine leaves it."""
    config, heads, first = model.config, model.impl.num_heads, model.world.rank * model.impl.num_heads
    shuffled = torch.randperm(state.block_table.numel(), generator=torch.Generator().manual_seed(scramble))
    table = (1 + shuffled).view_as(state.block_table)
    state.tokens.fill_(-1)
    state.sampling[0] = temperature
    for b, row in enumerate(rows):
        numbers = (row.number * 131 % config.vocab_size, row.cached, 1, row.number * 2**40 + 7) if row.live else [0] * 4
        for to, number in zip((state.ids, state.positions, state.live, state.seeds), numbers):
            to[b] = number
        state.block_table[b] = table[b].int() if row.live else 0
        for layer, cache in enumerate(caches if row.live else ()):
            whole = row.noise(layer, (2, config.n_positions, config.n_head, cache.shape[-1]))
            mine = torch.zeros(2, table.shape[1] * state.block_size, *cache.shape[-2:])
            part = whole[:, :, first : first + heads]
            mine[:, : config.n_positions, : part.shape[2]] = part
            cache[:, table[b]] = mine.view(2, -1, *cache.shape[2:]).to(cache)


class Rank:
    """One rank's model, caches, state and step."""

    def __init__(self, model, rows, load, stream: Stream, temperature: float = 0.0, scramble: int = 0):
        config, device = model.config, model.world.device
        self.model, self.rows, self.stream = model, rows, stream
        self.state = DecodeState.empty(len(rows), model.impl.num_heads, config.n_positions, device)
        self.caches = model.new_kv_caches(1 + self.state.block_table.numel())
        fill(self.state, model, self.caches, rows, temperature, scramble)
        self.step = ClusterStep(model, self.caches, self.state, stream, load)
        self.shape = self.step.shape

    @property
    def live(self) -> torch.Tensor:
        return self.state.live.bool()

    def slots(self, number: int, count: int) -> torch.Tensor:
        """(count, B, D): what kernel `number` of a step, in its own count, has left."""
        shape = self.shape
        start = number % 2 * shape.set_bytes
        values = self.stream.buffer[start : start + shape.set_bytes].view(torch.float32)
        return values.view(shape.slots, shape.batch, shape.hidden, -1)[:count, ..., 0]


def side_by_side(models, rows, load, patience: float = PATIENCE, **how) -> list[Rank]:
    """The ranks of one process, which write into one another's buffers."""
    nbytes = Stream.nbytes(Shape.of(models[0], len(rows), models[0].impl.block_size))
    buffers = [torch.full((nbytes,), 0xFF, dtype=torch.uint8, device=m.world.device) for m in models]
    addresses = [buffer.data_ptr() for buffer in buffers]
    return [Rank(m, rows, load, Stream(buffer, addresses, patience), **how) for m, buffer in zip(models, buffers)]


def models_of(size: int, config=SMALL, dtype="bfloat16"):
    """The ranks' models, for kernels only: no process group is there for their collectives."""
    return [build_model(config, dtype, World(rank, size, torch.device("cpu"))) for rank in range(size)]


def at_once(calls) -> list:
    """What the calls return, each in a thread of its own: kernels of ranks, or of a step, that wait for one another."""
    if len(calls) == 1:
        return [calls[0]()]
    with ThreadPoolExecutor(len(calls)) as threads:
        return [done.result() for done in [threads.submit(call) for call in calls]]


def run_step(ranks: list[Rank], seed: int = 0) -> None:
    """A whole step on all ranks, in the emulator, in an order that the seed decides."""
    def run(rank):
        for i, (kernel, launch) in enumerate(rank.step.calls):
            kernel.launch(**launch, seed=1000 * seed + 100 * rank.shape.rank + i)

    at_once([partial(run, rank) for rank in ranks])


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def follow(ranks: list[Rank], launch) -> dict[str, float]:
    """Run a step, kernel by kernel, each against its twin: {kernel: largest relative error}.

    launch(kernel, how, late)   `late`: what the kernel before it wrote, if its end must be waited for
    Raises AssertionError where the cache, the next tokens or the state are not the twin's.
    """
    shape, worst = ranks[0].shape, {}
    live, number = ranks[0].live, int(shape.ranks == 1)
    twins = [[cache.clone() for cache in rank.caches] for rank in ranks]
    x = None if shape.ranks > 1 else twin.embedding(ranks[0].model, ranks[0].state)
    layers = [(name, i) for i in range(shape.layers) for name in ("attention", "mlp")]
    names = [("embed", 0)] * (shape.ranks > 1) + layers
    for (name, i), *calls in zip(names, *(rank.step.calls for rank in ranks)):
        late = [] if shape.flagged or number == 1 else [ranks[0].slots(number + 1, shape.slots)]
        at_once([partial(launch, *call, late) for call in calls])
        if name == "embed":
            want = torch.stack([part_of_embedding(rank) for rank in ranks])
        elif name == "attention":
            want = torch.cat([twin.attention(x, rank.model.h[i], cache[i], rank.state, rank.shape.rank == 0)
                              for rank, cache in zip(ranks, twins)])
            flips = max(compare_caches(rank.caches[i], cache[i]) for rank, cache in zip(ranks, twins))
            worst["rounded otherwise"] = max(worst.get("rounded otherwise", 0.0), flips)
        else:
            want = torch.cat([twin.mlp(x, rank.model.h[i], rank.shape.rank == 0) for rank in ranks])
        got = ranks[0].slots(number, len(want))
        for other in ranks[1:]:
            assert torch.equal(other.slots(number, len(want)), got), f"the ranks' slots behind {name} {i}"
        worst[name] = max(worst.get(name, 0.0), error(got[:, live], want[:, live]))
        x, number = got.sum(0), number + 1
    return worst | {"head": follow_head(ranks, x, launch, number)}


def follow_head(ranks, x, launch, number) -> float:
    before = [rank.state.positions.clone() for rank in ranks]
    keys = torch.stack([twin.head(x, rank.model, rank.state)[0] for rank in ranks])
    late = [] if ranks[0].shape.flagged else [ranks[0].slots(number + 1, ranks[0].shape.slots)]
    at_once([partial(launch, *rank.step.calls[-1], late) for rank in ranks])
    if x.is_cuda:
        torch.cuda.synchronize()
    live = ranks[0].live
    tokens, worst = 0x7FFFFFFF - (keys.amax(0) & 0xFFFFFFFF), 0.0
    for rank, mine, positions in zip(ranks, keys, before):
        found, state = rank.step.keys.amax(0), rank.state
        assert torch.equal(found[live] & 0xFFFFFFFF, mine[live] & 0xFFFFFFFF), "another token of the rank's own"
        worst = max(worst, error(key_value(found)[live], key_value(mine)[live]))
        assert torch.equal(state.ids[live], tokens[live]), "another token of all ranks'"
        assert torch.equal(state.positions, positions + state.live)
        text = torch.full_like(state.tokens, -1)
        rows = live.nonzero()[:, 0].cpu()
        text[rows, (positions.cpu() + 1)[rows]] = tokens.int().cpu()[rows]
        assert torch.equal(state.tokens, text), "tokens in the host's memory"
        assert rank.stream.counts.tolist() == [1, 0, 0]
    return worst


def part_of_embedding(rank: Rank) -> torch.Tensor:
    """(B, D): the tokens' rows that this rank has, and on rank 0 the positions'."""
    wte, state = rank.model.wte, rank.state
    row = state.ids - wte.start
    mine = ((row >= 0) & (row < wte.local))[:, None]
    x = torch.where(mine, wte.weight[row.clamp(0, wte.local - 1)].float(), 0.0)
    return x + rank.model.wpe.weight[state.positions].float() if rank.shape.rank == 0 else x


def compare_caches(got: torch.Tensor, want: torch.Tensor) -> float:
    """Share of numbers that differ by one rounding, in pages that a live row owns; none differs by more."""
    rounding = 2.0**-10 if got.dtype == torch.float16 else 2.0**-7
    got, want = got[:, 1:].float(), want[:, 1:].float()
    assert ((got - want).abs() <= rounding * want.abs() + 2e-5).all(), "keys or values in the cache"
    return float((got != want).float().mean())

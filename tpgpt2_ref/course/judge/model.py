"""Witness: this package's model and collectives, on imagined ranks. Counts, bytes and shapes, no times."""
from __future__ import annotations

from functools import cache

from ...attention.vllm_rules import sums_by
from ...config import GPT2Config


@cache
def rows(size: int = 2, tokens: int = 1, plan: str = "shipped") -> tuple:
    """The collectives of one forward of GPT-2 small, in order, as one of `size` ranks sees them."""
    from ...cost.simulate import fake_forward

    return tuple(fake_forward(GPT2Config(), size, plan, tokens))


def sends(part: str, but: str = "-") -> list[str]:
    """The collectives that a part of the model calls: "h.0" the first block, "wte" the embedding."""
    return [r.op for r in rows() if f"{r.layer}.".startswith(f"{part}.") and not r.layer.endswith(but)]


def bytes_of(part: str, batch: int = 1, tokens: int = 1) -> int:
    """Bytes that a rank gives to that part's collectives, in bf16."""
    return sum(r.bytes for r in rows(2, batch * tokens) if f"{r.layer}.".startswith(f"{part}."))


def bytes_over_diagram() -> dict:
    """Bytes of the all-reduce after c_proj, over the diagram's D * B."""
    cases = {"decode, batch 1": (1, 1), "decode, batch 32": (32, 1), "a prompt of 1,024": (1, 1024)}
    return {case: bytes_of("h.0.attn.c_proj", *how) / (GPT2Config().n_embd * how[0]) for case, how in cases.items()}


@cache
def shard(size: int = 2) -> dict:
    """Shapes of one rank of `size`: {what: [rows, columns] or width}, a weight as the diagram writes it, (in, out)."""
    import torch

    from ...parallel.fake import fake_world
    from ...parallel.linear import QKVParallelLinear, RowParallelLinear

    config = GPT2Config()
    with fake_world(size) as world, torch.device("meta"):
        c_attn = QKVParallelLinear(config.n_embd, config.head_size, config.n_head, world)
        c_proj = RowParallelLinear(config.n_embd, config.n_embd, world, multiple=config.head_size, reduce_results=False)
        q, k, v = c_attn(torch.empty(1, config.n_embd)).chunk(3, dim=-1)  # (1, D) -> (1, D/n) each
        out = c_proj(q)  # attention keeps q's shape: (1, D/n) -> (1, D)
    return {"heads": c_attn.heads, "c_attn": list(c_attn.weight.T.shape), "q": q.shape[-1], "attention": q.shape[-1],
            "c_proj": list(c_proj.weight.T.shape), "out": out.shape[-1]}


def heads_per_rank() -> dict:
    return {f"{n} GPU{'s' * (n > 1)}": shard(n)["heads"] for n in (1, 2)}


def adds_bias() -> list[bool]:
    """By rank: whether its partial product of c_proj has the bias in it."""
    import torch

    from ...parallel.fake import fake_world
    from ...parallel.linear import RowParallelLinear

    found = []
    for rank in (0, 1):
        with fake_world(2, rank) as world:
            layer = RowParallelLinear(8, 8, world, reduce_results=False)
            layer.weight.zero_(), layer.bias.fill_(1)
            found.append(bool(layer(torch.zeros(1, 4)).any()))
    return found


def sums_per_pair() -> float:
    """All-reduces of a block over its pairs of a column-parallel and a row-parallel layer."""
    import torch

    from ...gpt2 import GPT2Block
    from ...parallel.linear import ColumnParallelLinear
    from ...parallel.world import World

    with torch.device("meta"):
        block = GPT2Block(GPT2Config(), World(size=2), None, "shipped")
    pairs = sum(isinstance(layer, ColumnParallelLinear) for layer in block.modules())
    return sends("h.0").count("all_reduce") / pairs


def split_moves() -> dict:
    """Bytes that move so that two ranks hold half of a vector of D: if both hold it whole, and if only rank 0 does."""
    import torch

    from ...parallel.collectives import split_tensor_along_last_dim
    from ...parallel.fake import fake_world
    from ...trace import Trace

    with fake_world(2, 1) as world:
        world.trace = Trace()
        half = split_tensor_along_last_dim(torch.empty(GPT2Config().n_embd, dtype=torch.bfloat16), world)
        return {"both hold it": sum(r.bytes for r in world.trace.rows), "only GPU 0 holds it": half.nbytes}


def share_of_one_gpu() -> float:
    """Percent of a forward on one GPU that is communication: its collectives, of which there may be none."""
    return 100.0 * bool(rows(1))


def who_sums_a_token(version: str) -> str:
    """Who all-reduces one token's 1,536 bytes over two GPUs that reach each other's memory."""
    return sums_by(version, bytes_of("h.0.attn.c_proj"))

"""Diagram 2: GPT-2's forward pass with tensor parallelism. Every rank runs this file on its own shard.

    hidden (T, D), the same on every rank
      | STEP 1  c_attn   column-parallel   (T, D) -> (T, 3D/n)     nothing moves
      | STEP 2  chunk                      q, k, v: (T, D/n) each, this rank's heads
      | STEP 3  attn     a kernel on one GPU, this rank's heads, this rank's cache
      | STEP 4  c_proj   row-parallel      (T, D/n) -> (T, D), all-reduce
    hidden (T, D), the same on every rank

Two plans compute the same logits. `shipped` is what vLLM and Megatron-LM run. `as-drawn` is the diagram to the
letter: between steps 2 and 3 every rank gathers q, k and v, attends over all heads, and step 4 splits again.
The MLP is a second column-row pair with its own all-reduce, which the diagram leaves out.
This is the forward to read. `engine/decode_step.py` and `engine/prefill_step.py` are its fast twins, of fused kernels;
`tests/test_engine.py` holds them to it on a CPU, `tests/test_cuda_graph.py` and `tests/test_gpu.py` on GPUs.
Dimension suffixes: T tokens of all sequences of the step, D hidden size, n ranks, V vocabulary, B sequences.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .attention.backends.base import AttentionBackend
from .attention.kv_cache import allocate_kv_cache
from .attention.layer import Attention
from .attention.metadata import AttentionMetadata
from .config import PLANS, GPT2Config
from .errors import UserError
from .parallel.collectives import all_gather
from .parallel.embedding import ParallelLMHead, VocabParallelEmbedding
from .parallel.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from .parallel.world import World

INNER_MULTIPLE = 8  # the MLP's width a rank: 16 bytes of fp16, what tensor cores want a row to be


class GPT2Attention(nn.Module):
    def __init__(self, config: GPT2Config, world: World, impl: AttentionBackend, plan: str):
        super().__init__()
        self.world, self.as_drawn, self.name = world, plan == "as-drawn", ""
        self.c_attn = QKVParallelLinear(config.n_embd, config.head_size, config.n_head, world)
        self.attn = Attention(impl)
        self.c_proj = RowParallelLinear(config.n_embd, config.n_embd, world, input_is_parallel=not self.as_drawn,
                                        multiple=config.head_size)

    def forward(self, x_TD: torch.Tensor, kv_cache: torch.Tensor, meta: AttentionMetadata) -> torch.Tensor:
        qkv = self.c_attn(x_TD)  # (T, D) -> (T, 3D/n)
        q, k, v = qkv.chunk(3, dim=-1)  # (T, D/n) each: 384 = 6 heads of 64 at n = 2
        if self.as_drawn:
            q, k, v = (all_gather(x, self.world, self.name) for x in (q, k, v))  # (T, D/n) -> (T, D)
        out = self.attn(q, k, v, kv_cache, meta)  # (T, D/n), or (T, D) as drawn
        return self.c_proj(out)  # -> (T, D), summed over the ranks


class GPT2MLP(nn.Module):
    def __init__(self, config: GPT2Config, world: World):
        super().__init__()
        self.c_fc = ColumnParallelLinear(config.n_embd, config.inner, world, multiple=INNER_MULTIPLE)
        self.c_proj = RowParallelLinear(config.inner, config.n_embd, world, multiple=INNER_MULTIPLE)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x_TD), approximate="tanh"))  # (T, D) -> (T, 4D/n) -> (T, D)


class GPT2Block(nn.Module):
    def __init__(self, config: GPT2Config, world: World, impl: AttentionBackend, plan: str):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, world, impl, plan)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config, world)

    def forward(self, x_TD: torch.Tensor, kv_cache: torch.Tensor, meta: AttentionMetadata) -> torch.Tensor:
        x_TD = x_TD + self.attn(self.ln_1(x_TD), kv_cache, meta)
        return x_TD + self.mlp(self.ln_2(x_TD))


class GPT2Model(nn.Module):
    """The whole model, one rank of it. Construct it under the device and dtype wanted, then load weights.

    world  this rank's place; no process group is needed to construct a layer
    impl   the attention kernel; `plan` "as-drawn" needs one bound to all heads, "shipped" to this rank's
    """

    def __init__(self, config: GPT2Config, world: World, impl: AttentionBackend, plan: str = "shipped"):
        super().__init__()
        if plan not in PLANS:
            raise UserError(f"unknown plan {plan!r}; known: {', '.join(PLANS)}")
        self.config, self.world, self.impl, self.plan = config, world, impl, plan
        self.wte = VocabParallelEmbedding(config.vocab_size, config.n_embd, world)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(GPT2Block(config, world, impl, plan) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.lm_head = ParallelLMHead(config.vocab_size, config.n_embd, world,
                                      self.wte.weight if config.tie_word_embeddings else None)
        for name, module in self.named_modules():
            module.name = name  # who calls, in a trace

    def new_kv_caches(self, num_blocks: int) -> list[torch.Tensor]:
        """The layers' caches as this model's kernel reads them: (2, num_blocks, block_size, heads, head_size) each."""
        impl = self.impl
        return allocate_kv_cache(self.config.n_layer, num_blocks, impl.block_size, impl.num_heads, impl.head_size,
                                 impl.kv_dtype, self.world.device)

    def forward(self, ids_T: torch.Tensor, positions_T: torch.Tensor, kv_caches: list[torch.Tensor],
                meta: AttentionMetadata) -> torch.Tensor:
        """ids (T,) int64, positions (T,) int64 -> hidden states (T, D), the same on every rank."""
        meta.kernel = self.impl.build(meta)
        x_TD = self.wte(ids_T) + self.wpe(positions_T)  # the embedding's own all-reduce is in wte
        for block, kv_cache in zip(self.h, kv_caches):
            x_TD = block(x_TD, kv_cache, meta)
        return self.ln_f(x_TD)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, D) -> (B, V): the one all-gather of a forward."""
        return self.lm_head(hidden)


def attention_heads(config: GPT2Config, world: World, plan: str) -> int:
    """Heads that one rank's kernel sees, padding included: its own, or all of them as drawn."""
    local = -(-config.n_head // world.size)
    return local * world.size if plan == "as-drawn" else local


class LayerNorm(nn.LayerNorm):
    def load(self, weight, bias):
        self.weight.copy_(weight[:]), self.bias.copy_(bias[:])


class Embedding(nn.Embedding):
    def load(self, weight):
        self.weight.copy_(weight[:])

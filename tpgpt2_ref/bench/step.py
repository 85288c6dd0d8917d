"""One forward as a call without arguments, for whoever wants to time or trace it: a prefill, or a decode step.

`make_step` is gpt2.py's forward; `make_rung_step` the step of a rung of the ladder, with the choice of a token;
`make_prefill_step` what `generate` captures of a prefill, whole or in halves.
"""
from __future__ import annotations

from array import array

import torch

from ..attention.metadata import decode_metadata, prefill_metadata
from ..engine.cluster_step import ClusterSteps
from ..engine.decode_graph import GraphDecoder
from ..engine.ladder import Rung
from ..engine.prefill_graph import GraphPrefill
from ..engine.scheduler import Sequence
from ..kernels import plain
from ..request import SamplingParams


def make_step(model, phase: str, batch: int, prompt_len: int):
    """step() runs the forward and the logits of each sequence's last position: -> (batch, V).

    "prefill": `batch` prompts of `prompt_len` tokens. "decode": one token each, with `prompt_len` in the cache.
    The ids are random but the same on every rank; a cache that nobody filled holds zeros, which take as long.
    """
    config, impl, device = model.config, model.impl, model.world.device
    held = prompt_len + (phase == "decode")
    pages = -(-held // impl.block_size)
    kv = model.new_kv_caches(batch * pages + 1)
    table = 1 + torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
    if phase == "prefill":
        meta, positions = prefill_metadata([prompt_len] * batch, table, impl.block_size)
        last = meta.query_start_loc[1:].long() - 1
    else:
        positions = torch.full((batch,), prompt_len, device=device)
        meta = decode_metadata(positions, table, held, impl.block_size)
        last = torch.arange(batch, device=device)
    ids = torch.randint(config.vocab_size, positions.shape, generator=torch.Generator().manual_seed(0)).to(device)

    @torch.inference_mode()
    def step() -> torch.Tensor:
        return model.logits(model(ids, positions, kv, meta)[last])  # (T, D) -> (batch, V)

    return step


def make_prefill_step(model, batch: int, prompt_len: int, halves: bool):
    """step() runs what `generate` captures for `batch` prompts of `prompt_len` tokens. On a CPU the kernels' twins."""
    kernels = plain
    if model.world.device.type == "cuda":
        from ..kernels import prefill as kernels
    pages, ids = -(-prompt_len // model.impl.block_size), torch.Generator().manual_seed(0)
    prefills = GraphPrefill(model, model.new_kv_caches(batch * pages + 1), kernels, halves=halves)
    sequences = [Sequence(array("q", torch.randint(model.config.vocab_size, (prompt_len,), generator=ids).tolist()), 1,
                          blocks=list(range(1 + i * pages, 1 + (i + 1) * pages))) for i in range(batch)]
    return torch.inference_mode()(prefills.filled(prefills.parts(sequences)).run)


def make_rung_step(model, rung: Rung, batch: int, prompt_len: int, clusters=ClusterSteps):
    """step() runs what `generate` captures on this rung: one greedy token for each of `batch` sequences, padded up.

    Every sequence has `prompt_len` tokens in the cache, zeros as in `make_step`, and stays there: each step is alike.
    """
    config = model.config
    pages = -(-(prompt_len + 1) // model.impl.block_size)
    decoder = GraphDecoder(model, model.new_kv_caches(batch * pages + 1), rung, clusters=clusters)
    state, step = decoder.uncaptured(batch)
    ids = torch.randint(config.vocab_size, (batch,), generator=torch.Generator().manual_seed(0)).tolist()
    prompt = array("q", [0] * prompt_len)
    decoder.fill(state, [Sequence(prompt, 2, i, list(range(1 + i * pages, 1 + (i + 1) * pages)), [ids[i]])
                         for i in range(batch)], SamplingParams())
    state.live.zero_()  # no position moves on
    return torch.inference_mode()(step)

"""What each of eight ranks does for `test_eight_ranks.py`: eight processes import this file, so it imports little."""
from __future__ import annotations

import torch

from tpgpt2_ref.attention.kv_cache import allocate_kv_cache
from tpgpt2_ref.bench import collectives, decode, prefill
from tpgpt2_ref.engine import Engine, SamplingParams, prompt_logits
from tpgpt2_ref.engine.decode_step import decode_step
from tpgpt2_ref.engine.graph import PlainStep
from tpgpt2_ref.engine.ladder import Rung
from tpgpt2_ref.kernels import Kernels
from tpgpt2_ref.kernels.state import DecodeState
from tpgpt2_ref.weights import load_model

from .push_over_gloo import PushOverGloo

RANKS, NEW = 8, 3  # each collective has eight processes wait for one another on few cores: no more than needed
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [42], [99, 98, 97, 5, 5]]
TWINS = Rung("twins", "every function in plain torch", fused=())
SAMPLED = [SamplingParams(0.8, seed=3), SamplingParams(1.1, top_k=9, top_p=0.8, seed=2**40 + 5)]


def generated(world, folder) -> dict:
    """What a rank, or one alone, says of a checkpoint in both plans, in the graphs' way and with fused sums."""
    found = {}
    for plan in ("shipped", "as-drawn"):
        engine = Engine(model := load_model(str(folder), world, plan))
        found[plan] = dict(new=engine.generate(PROMPTS, NEW), logits=prompt_logits(model, PROMPTS[0]).numpy(),
                           moved=engine.first_forward)
        if plan == "as-drawn":
            found["drawn"] = engine.generate(PROMPTS, NEW, SAMPLED[1])
    graphs = Engine(model := load_model(str(folder), world), rung=TWINS, capture=PlainStep)
    found["graphs"] = [graphs.generate(PROMPTS, NEW, params) for params in (SamplingParams(), *SAMPLED)]
    found["steps"] = [fused_step(model, world, own) for own in (False, True)]
    return found


def fused_step(model, world, own: bool) -> list[int]:
    """The tokens behind one decode step of three rows, whose sums are the group's, or carry a LayerNorm as push's."""
    kept, heads = world.all_reduces, model.impl.num_heads
    if own and not world.alone:
        world.all_reduces = (PushOverGloo(world), *kept)
    state = DecodeState.empty(3, heads, 32, torch.device("cpu"))
    state.ids.copy_(torch.tensor([1, 200, 30]))
    kv = allocate_kv_cache(model.config.n_layer, 1, 16, heads, model.config.head_size, torch.float32, "cpu")
    with torch.inference_mode():
        decode_step(model, kv, state, Kernels.choose((), fused_sum=own))
    world.all_reduces = kept
    return state.ids.tolist()


def all_of(world, folders) -> tuple[dict, list[dict]]:
    """What a rank generates, and the rows of all benches."""
    texts = {name: generated(world, folder) for name, folder in folders.items()}
    if world.alone:
        return texts, []
    model = load_model("random:gpt2-test", world)
    runs = (collectives.sweep(world, sizes=[1 << 16], samples=3, with_bare=False),
            decode.sweep(model, "gpt2-test", "float32", [2], [4], 3, with_peer=False),
            prefill.sweep(model, "gpt2-test", "float32", [1], [4], 2, with_peer=False))
    return texts, [row for run in runs for row, _ in run]

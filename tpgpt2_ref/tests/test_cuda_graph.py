"""Decode on GPUs: every rung of the ladder gives gpt2.py's tokens, in CUDA graphs, on one rank and on two."""
from __future__ import annotations

import pytest
import torch

from tpgpt2_ref.attention.kv_cache import allocate_kv_cache
from tpgpt2_ref.bench.stopwatch import captured
from tpgpt2_ref.config import GPT2Config
from tpgpt2_ref.engine import Engine, SamplingParams, prompt_logits
from tpgpt2_ref.engine.cluster_step import ClusterSteps
from tpgpt2_ref.engine.decode_graph import rungs_of
from tpgpt2_ref.engine.decode_step import decode_step
from tpgpt2_ref.engine.graph import CapturedStep
from tpgpt2_ref.engine.ladder import LADDER
from tpgpt2_ref.kernels import Kernels
from tpgpt2_ref.kernels.clusters import nvrtc
from tpgpt2_ref.kernels.clusters.step import ClusterStep
from tpgpt2_ref.kernels.plain import key_value
from tpgpt2_ref.kernels.state import DecodeState
from tpgpt2_ref.parallel.launch import gpu_count
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.weights import Checkpoint, load_model

from .conftest import cli_json, on_ranks
from .test_gpt2 import greedy_of_hugging_face
from .test_gpu import SHARE

PROMPTS = [[1, 2, 3], list(range(20, 57)), [5], [7, 7], list(range(90, 10, -1))]
SAMPLED = [SamplingParams(), SamplingParams(0.9, seed=3), SamplingParams(1.1, top_k=9, top_p=0.8, seed=5)]
SAME = 0.85  # share of tokens: two logits of 16 bits may be equal to the last bit, and from there two texts differ


def same(a, b) -> float:
    return sum(x == y for p, q in zip(a, b) for x, y in zip(p, q)) / sum(map(len, a))


def step_logits(model, run, kernels, dtype, clusters=False):
    """The keys of one captured step over a random cache: the head's own logits, before anything is drawn.

    clusters  the step is one of cluster kernels, whatever `run` and `kernels` are
    """
    random = torch.Generator(model.world.device).manual_seed(0)
    impl, device = model.impl, model.world.device
    state = DecodeState.empty(4, impl.num_heads, 128, device)
    kv = allocate_kv_cache(model.config.n_layer, 33, 16, impl.num_heads, impl.head_size, dtype, device)
    for cache in kv:
        cache.normal_(generator=random)
    keys = []

    def argmax(key, state):
        keys.append(key.amax(0))

    if clusters:
        steps = ClusterSteps(model, kv)
        of_clusters = ClusterStep(model, kv, state, steps.stream, steps.load)
        keys.append(of_clusters.keys)
        step = CapturedStep(of_clusters)
    else:
        step = CapturedStep(lambda: run(model, kv, state, Kernels(**{**kernels.__dict__, "argmax": argmax})))
    state.block_table.copy_(torch.arange(1, 33, device=device).view(4, 8))
    state.positions.copy_(torch.tensor([0, 15, 16, 100]))
    state.ids.copy_(torch.tensor([1, 2, 3, 4]))
    step.replay()
    torch.cuda.synchronize()
    return key_value(keys[-1].amax(0) if clusters else keys[-1])


@pytest.mark.gpu
def test_a_graph_keeps_what_its_step_reads_and_writes():
    """Also where nobody else does, as with a rung's own scratch: new tensors would else lie in its place."""
    class Counts:
        def __init__(self):
            self.count = torch.zeros(1 << 20, dtype=torch.int32, device="cuda")

        def step(self):
            self.count.add_(1)

    steps = [CapturedStep(Counts().step), captured(Counts().step)]
    strangers = [torch.zeros(1 << 20, dtype=torch.int32, device="cuda") for _ in range(8)]
    steps[0].replay(), steps[1]()
    assert not any(stranger.any() for stranger in strangers)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_best_logit_of_every_rung(dtype):
    """One step, in a graph: the best token's logit is the same to a few roundings on every rung."""
    model = load_model("random:gpt2", World.single("cuda"), dtype=str(dtype).removeprefix("torch."))
    want = step_logits(model, decode_step, Kernels.choose(()), dtype)
    for rung in rungs_of(model)[2:]:
        error = (step_logits(model, decode_step, rung.kernels(), dtype, rung.clusters) - want).abs().max()
        assert error < 4e-2 * want.abs().max(), (rung.name, error)


def tokens_of_rungs(world, names, new=20):
    model, tokens = load_model("tiny", world, dtype="float16"), []
    for rung in (r for r in LADDER if r.name in names):
        engine = Engine(model, rung=rung)
        tokens.append([engine.generate(PROMPTS, new, params) for params in SAMPLED])
        assert engine.why_eager is None or not rung.graph, engine.why_eager
    return tokens


@pytest.mark.gpu
def test_every_rung_gives_the_tokens_of_eager():
    names = [r.name for r in rungs_of(load_model("tiny", World.single("cuda"), dtype="float16"))]
    eager, *others = tokens_of_rungs(World.single("cuda"), names)
    for name, tokens in zip(names[1:], others):
        for params, a, b in zip(SAMPLED, eager, tokens):
            assert same(a, b) > SAME, (name, params, same(a, b))


@pytest.mark.gpu
def test_a_second_run_and_a_smaller_batch_reuse_the_graphs():
    model = load_model("tiny", World.single("cuda"), dtype="float16")
    engine = Engine(model)
    first = engine.generate(PROMPTS, 20)
    held = dict(engine.decoder.steps)
    assert engine.generate(PROMPTS, 20) == first
    assert same(engine.generate(PROMPTS[:3], 20), first[:3]) > SAME
    assert engine.decoder.steps == held
    assert engine.why_eager is None


@pytest.mark.gpu
def test_sampled_tokens_do_not_depend_on_the_batch():
    """Short texts: one draw in a hundred falls between two roundings of a logit, and from there two texts differ."""
    model = load_model("tiny", World.single("cuda"), dtype="float16")
    engine, alone, together = Engine(model), [], []
    for seed in range(12):
        for params in (SamplingParams(0.9, seed=seed), SamplingParams(1.1, top_k=9, top_p=0.8, seed=seed)):
            alone += engine.generate(PROMPTS[:1], 5, params)
            together += engine.generate(PROMPTS, 5, params)[:1]
    assert same(together, alone) > SAME


@pytest.mark.gpu
def test_seeds_and_filters_are_data():
    """Twenty requests that differ in seed, temperature, top-k and top-p: two graphs, and no more memory."""
    engine, held = Engine(load_model("tiny", World.single("cuda"), dtype="float16")), []
    for seed in range(10):
        for params in (SamplingParams(0.5 + seed / 10, seed=seed), SamplingParams(1.1, seed + 3, 0.9, seed)):
            engine.generate(PROMPTS, 4, params)
        held.append(torch.cuda.memory_reserved())
    assert engine.why_eager is None and set(engine.decoder.steps) == {(8, False), (8, True)}
    assert held[-1] == held[2]


@pytest.mark.gpu
def test_a_named_backend_decodes_in_a_graph_of_its_own():
    free = Engine(load_model("tiny", World.single("cuda"), dtype="float16"))
    name = free.model.impl.name
    named = Engine(load_model("tiny", World.single("cuda"), dtype="float16", backend=name))
    assert free.decode_attention in ("kernels.decode_attention", "kernels.clusters")
    assert named.decode_attention == name
    assert named.rung.name == "graph" and same(free.generate(PROMPTS, 20), named.generate(PROMPTS, 20)) > SAME
    assert named.why_eager is None and named.decoder.steps


@pytest.mark.gpu
def test_prompts_as_long_as_the_model_again_and_again():
    config = GPT2Config(n_layer=2, n_head=2, n_embd=64, n_positions=96, vocab_size=257, eos_token_id=256)
    model = load_model(Checkpoint(config, None, {}), World.single("cuda"), dtype="float16")
    engine, n = Engine(model), config.n_positions
    prompts = [[i % 250 for i in range(n)], [7] * (n - 1), [3] * (n - 3), [9]]
    first = engine.generate(prompts, 20)
    for _ in range(3):  # the second is captured, the third replayed
        assert same(engine.generate(prompts, 20), first) > SAME
    assert [len(new) for new in first] == [1, 1, 3, 20] or 256 in sum(first, [])
    assert engine.prefills.buckets or engine.prefilling.why_not  # this GPU's backend says whether it can


@pytest.mark.gpu
@pytest.mark.parametrize("size, names", [(2, ["graph", "+head", "+sum", "+pdl"]), (4, ["+head", "+pdl"]),
                                         (8, ["+pdl"])])
def test_ranks_in_graphs(size, names):
    """Collectives inside the graphs. Where there is one GPU, all ranks share it: right, not fast."""
    if 1 < gpu_count() < size:
        pytest.skip(f"needs one GPU, or {size}")
    one = tokens_of_rungs(World.single("cuda"), ["+head"], 6)[0]
    for rank in on_ranks(size, tokens_of_rungs, names, 6, device="cuda", env=SHARE, timeout=180):
        for name, tokens in zip(names, rank):
            for params, a, b in zip(SAMPLED, one, tokens):
                assert same(a, b) > SAME, (name, params, same(a, b))


@pytest.mark.parametrize("size", [pytest.param(n, marks=pytest.mark.gpus(n)) for n in (4, 8)])
def test_the_ladder_of_ranks_on_gpus_of_their_own(size):
    """Each rung's greedy tokens, in graphs, are the best by gpt2.py to a few roundings, and the same on all ranks. On
    eight GPT-2's 12 heads are padded. Two ranks: `test_ranks_in_graphs`."""
    first, *others = on_ranks(size, rungs_from_eager, device="cuda", timeout=280)
    names = [name for name, *_ in first]
    assert names[:2] == ["eager", "graph"] and all(other == first for other in others)
    assert names[-1] == "+clusters" or nvrtc.why_not(torch.device("cuda")), names
    for name, behind, why, _ in first:
        assert behind < 2e-2 and why is None, (name, behind, why)


def rungs_from_eager(world):
    """[(rung, how far behind the best logit a token's is by gpt2.py, why it was not in a graph, tokens)]."""
    model, found = load_model("random:gpt2", world, dtype="float16"), []
    for rung in rungs_of(model):
        engine = Engine(model, rung=rung)
        texts = engine.generate(PROMPTS[:3], 6)
        behind = 0.0
        for prompt, new in zip(PROMPTS, texts):
            logits = prompt_logits(model, prompt + new)[len(prompt) - 1 : -1].float()  # (new, V)
            taken = logits.gather(1, torch.tensor(new, device=logits.device)[:, None])[:, 0]
            behind = max(behind, float(((logits.amax(1) - taken) / logits.abs().amax(1)).max()))
        found.append((rung.name, behind, engine.why_eager if rung.graph else None, texts))
        engine.close()
    return found


@pytest.mark.gpu
def test_memory_at_load():
    """A rank's weights are its shard, and loading holds little more at any time."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model = load_model("random:gpt2", World.single("cuda"), dtype="bfloat16")
    weights = sum(p.nbytes for p in model.parameters())
    assert torch.cuda.max_memory_allocated() - before < 1.2 * weights
    Engine(model).generate([[1, 2, 3]], 4)
    assert sum(p.nbytes for p in model.parameters()) == weights
    assert torch.cuda.memory_allocated() - before < 1.2 * weights + 64e6  # no second copy: cache and graphs are small


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("params", SAMPLED[::2], ids=["greedy", "filtered"])
def test_on_a_gpu_with_8_gb_left_the_cache_takes_most_and_the_rest_waits(params):
    """256 prompts to the model's end need 10. Twice: by gpt2.py, and then in graphs; alike, and never out of memory."""
    random = torch.Generator().manual_seed(0)
    model = load_model("random:gpt2", World.single("cuda"), dtype="bfloat16")
    n = model.config.n_positions
    prompts = torch.randint(0, 50257, (256, n - 4), generator=random).tolist()
    torch.cuda.empty_cache()
    ballast = torch.empty(torch.cuda.mem_get_info()[0] - (8 << 30), dtype=torch.uint8, device="cuda")
    free = torch.cuda.mem_get_info()[0]
    engine = Engine(model)
    try:
        new = [engine.generate(prompts, 8, params) for _ in range(2)]
        left = torch.cuda.mem_get_info()[0]
    finally:
        del ballast  # or the tests after a failure would miss it
    cache = sum(cache.nbytes for cache in engine.kv_caches)
    print(f"free {free:,}, cache {cache:,}, left {left:,}, {engine.plan}, graphs hold {engine.prefills.held:,}")
    assert 0.6 * free < cache < 0.9 * free and left > 0 and engine.why_eager is engine.prefilling.why_not is None
    assert all(len(texts) == 256 and all(1 <= len(ids) <= 5 for ids in texts) for texts in new)


@pytest.mark.parametrize("tp", [pytest.param(1, marks=pytest.mark.gpu), pytest.param(2, marks=pytest.mark.gpus(2))])
def test_a_head_of_its_own_in_the_fused_step(tp, tmp_path):
    """An untied checkpoint, as transformers saves it: gpt2.py's ids and transformers' from the fused kernels."""
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    torch.manual_seed(4)  # of twelve, the seed whose best and second-best logits are farthest apart: 20 roundings
    shape = dict(n_layer=2, n_head=4, n_embd=128, n_positions=64, vocab_size=257, bos_token_id=256, eos_token_id=256)
    theirs = GPT2LMHeadModel(TheirConfig(attn_implementation="eager", tie_word_embeddings=False, **shape)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p), alpha=0.02)
        theirs.lm_head.weight.normal_()
    theirs.save_pretrained(tmp_path)
    prompts = [[1, 2, 3, 4, 5], [42], [99, 98, 97]]
    want = greedy_of_hugging_face(theirs, prompts, 8)
    model = load_model(str(tmp_path), World.single("cuda"), dtype="float16")
    assert not model.config.tie_word_embeddings and Engine(model, rung=LADDER[0]).generate(prompts, 8) == want
    asked = [word for ids in prompts for word in ("--prompt-ids", ",".join(map(str, ids)))]
    said = cli_json("generate", "--model", tmp_path, "--device", "cuda", "--dtype", "float16", "--tp", tp, *asked,
                    "--max-new-tokens", 8, "--graphs")
    assert said["token_ids"] == want and said["eager_because"] is None and said["tp"] == tp

"""Random cases of a decode step and of a prefill, and what holds a kernel equal to its plain twin."""
from __future__ import annotations

from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import torch

from tpgpt2_ref.attention.kv_cache import allocate_kv_cache
from tpgpt2_ref.config import GPT2Config
from tpgpt2_ref.engine.decode_step import decode_step
from tpgpt2_ref.kernels import Kernels, plain
from tpgpt2_ref.kernels.state import DecodeState, Residual
from tpgpt2_ref.kernels.tiles import ALL_WIDE, Gemv, Skinny, TensorCore, Vector, Wide
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.weights import Checkpoint, load_model

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # |a - b| / |b|, a few roundings


class Case:
    """Random weights, a random cache and a decode state whose rows are of unequal lengths."""

    def __init__(self, device, dtype, batch, heads, head_size, width, length=64, rows=256):
        """rows  of the vocabulary that this rank holds, from the 192nd on; the last 18 are padding"""
        random = torch.Generator().manual_seed(batch * heads)

        def normal(*shape, scale=1.0):
            return (torch.randn(*shape, generator=random) * scale).to(device, dtype)

        def linear(out, inner):
            return SimpleNamespace(weight=normal(out, inner, scale=inner**-0.5), bias=normal(out))

        self.x = normal(batch, width, scale=3.0) + 1
        self.norm = torch.nn.LayerNorm(width).to(device, dtype).requires_grad_(False)
        self.norm.weight += normal(width, scale=0.3)
        self.norm.bias += normal(width, scale=0.3)
        self.c_attn, self.c_fc = linear(3 * heads * head_size, width), linear(4 * width, width)
        self.c_proj, self.inner = linear(width, 4 * width), normal(batch, 4 * width)
        self.wpe = SimpleNamespace(weight=normal(length, width))
        self.wte = SimpleNamespace(weight=normal(rows, width), vocab_size=174 + rows, start=192, local=rows)
        self.state = DecodeState.empty(batch, heads, length, torch.device(device))
        self.state.ids.copy_(torch.randint(0, 192 + rows, (batch,), generator=random))
        self.state.ids[1:2] = 192 + rows  # the first of the next rank's
        self.state.live.fill_(1)
        self.state.live[-1] = batch == 1
        pages = self.state.block_table.numel()
        self.state.block_table.copy_((1 + torch.randperm(pages, generator=random)).view_as(self.state.block_table))
        self.state.positions.copy_(torch.randint(1, length - 1, (batch,), generator=random))
        self.state.positions[0] = 0 if batch > 1 else length - 2
        self.state.seeds.copy_(torch.arange(batch) * 2**40 + 7)
        self.kv_cache = normal(2, pages + 1, 16, heads, head_size)
        self.qkv = normal(batch, 3 * heads * head_size)

    def results(self, kernels, temperature=0.0) -> dict[str, torch.Tensor]:
        """What each function of a decode step makes of this case, on copies of what it would change."""
        state, kv_cache = copy(self.state), self.kv_cache.clone()
        for name in ("ids", "positions", "tokens", "sampling"):
            setattr(state, name, getattr(self.state, name).clone())
        if self.x.is_cuda:
            state.tokens = state.tokens.pin_memory()
        state.sampling[0] = temperature
        x, normed, out = Residual(self.x, self.norm), Residual(self.x, None, normed=self.x), {}
        if not temperature:  # which only the head asks for
            out = {
                "embed": kernels.embed(state, self.wte, self.wpe, position=True),
                "embed of another rank": kernels.embed(state, self.wte, self.wpe, position=False),
                "qkv": kernels.qkv(x, self.c_attn, state),
                "qkv of a normed x": kernels.qkv(normed, self.c_attn, state),
                "attention": kernels.attention(self.qkv, kv_cache, state),
                "kv_cache": kv_cache,
                "gelu": kernels.gelu(x, self.c_fc, state),
                "add": kernels.add(self.inner, self.c_proj, x, self.norm, state).x,
                "partial": kernels.partial(self.inner, self.c_proj, bias=False, state=state),
            }
        out["key"] = kernels.head_argmax(x, self.wte, state).amax(0)
        keys = plain.head_argmax(x, self.wte, state)
        kernels.argmax(torch.stack([keys, keys], -1)[..., 0], state)  # rows and columns apart, as a gather leaves them
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return out | {"ids": state.ids, "positions": state.positions, "tokens": state.tokens}

    def logits(self) -> torch.Tensor:
        """(B, V): what `head_argmax` chooses from, by the twin's own arithmetic; the columns start at wte.start."""
        return torch.nn.functional.linear(self.norm(self.x), self.wte.weight).float()


def hold_equal(case: Case, kernels: Kernels):
    for temperature in (0.0, 0.8):
        want, got = case.results(Kernels.choose(()), temperature), case.results(kernels, temperature)
        for name, x in want.items():
            if name == "key":  # the best token may be another one where two logits are equal to the last bits
                assert_close(name, plain.key_value(got[name]), plain.key_value(x), case.x.dtype)
                if temperature == 0.0:
                    column = 0x7FFFFFFF - (got[name] & 0xFFFFFFFF) - case.wte.start
                    own = case.logits().gather(1, column[:, None])[:, 0]
                    assert_close("token's own logit", own, plain.key_value(x), case.x.dtype)
            elif x.is_floating_point():
                assert_close(name, got[name], x, x.dtype)
            else:
                assert torch.equal(got[name], x), (name, got[name], x)


def assert_close(name: str, got, want, dtype):
    error, size = (got.double() - want.double()).norm(), want.double().norm()
    assert error <= TOLERANCE[dtype] * size, (name, error / size)


def hold_prefill_equal(case: Case):
    from tpgpt2_ref.kernels import prefill

    y, qkv = case.x.flip(0).contiguous(), torch.nn.functional.linear(case.x, case.c_attn.weight)
    for fused, twin in zip(prefill.add_norm(case.x, y, case.norm), plain.add_norm(case.x, y, case.norm)):
        assert (fused.double() - twin.double()).norm() < TOLERANCE[twin.dtype] * twin.double().norm()
    a, b = case.kv_cache.clone(), case.kv_cache.clone()
    prefill.write_cache(qkv, a, case.state.slots())
    plain.write_cache(qkv, b, case.state.slots())
    assert torch.equal(a, b) and not torch.equal(a, case.kv_cache)


def hold_split_equal(case: Case):
    """Work that several programs share, more often than once: the counters return to zero."""
    from tpgpt2_ref.kernels import decode_attention, products

    written = case.kv_cache.clone()
    twin = plain.attention(case.qkv, written, case.state)
    for tile in (Vector(16, 4), Vector(64, 4), TensorCore(16, 16, 1, 4), TensorCore(16, 32, 2, 4),
                 TensorCore(32, 64, 3, 4)):
        kv_cache = case.kv_cache.clone()
        fused = decode_attention.attention(case.qkv, kv_cache, case.state, tile=tile)
        assert_close("attention", fused, twin, twin.dtype)
        assert torch.equal(kv_cache, written)
        assert not case.state.arrived.any()
    x = Residual(case.x, case.norm)
    tile = Wide(ROWS=16, B=16, DEPTH=16, STAGES=1, SPLITS=4, num_warps=4)
    whole = replace(tile, SPLITS=1)
    for name, more in (("gelu", tile), ("gelu", whole), ("qkv", whole), ("head_argmax", whole), ("gelu", tile)):
        left = products.add(case.inner, case.c_proj, x, case.norm, case.state, tile=tile, scaled=True)
        linear = {"gelu": case.c_fc, "qkv": case.c_attn, "head_argmax": case.wte}[name]
        fused = getattr(products, name)(left, linear, case.state, tile=more)
        twin = getattr(plain, name)(Residual(left.x, case.norm), linear, case.state)
        if name == "head_argmax":
            fused, twin = plain.key_value(fused.amax(0)), plain.key_value(twin.amax(0))
        assert_close(f"{name} behind a scaled norm", fused, twin, case.x.dtype)
        now, before = case.state.row_sums[case.state.turn], case.state.row_sums[1 - case.state.turn]
        assert not now[:2].any() and before[:2].all()
    for _ in range(2):
        fused = products.add(case.inner, case.c_proj, x, case.norm, case.state, tile=tile).x
        twin = plain.add(case.inner, case.c_proj, x, case.norm, case.state).x
        assert (fused.double() - twin.double()).norm() < TOLERANCE[twin.dtype] * twin.double().norm()
        assert not case.state.arrived.any()


def hold_noise_equal(case: Case):
    """All logits alike: what is drawn is the noise's own argmax, the same bits in the kernel and its twin."""
    from tpgpt2_ref.kernels import products

    x = Residual(torch.zeros_like(case.x), None, normed=torch.zeros_like(case.x))
    case.state.sampling[0] = 1.0
    seeds = [0, 5, 2**31, 2**32 + 5, 2**40 + 5, 2**62, 2**63 - 1, -(2**63), -1]
    case.state.seeds.copy_(torch.tensor(seeds[: case.state.batch]))
    fused, twin = (room.head_argmax(x, case.wte, case.state).amax(0) for room in (products, plain))
    assert torch.equal(fused & 0xFFFFFFFF, twin & 0xFFFFFFFF) and fused.unique().numel() > len(seeds) // 2  # tokens
    assert_close("noise", plain.key_value(fused), plain.key_value(twin), torch.float32)


def hold_far_rows_equal(case: Case):
    """Rows of mean 100 and deviation 0.1: E[x^2] - mean^2 in float32 would be off by a tenth of the variance."""
    from tpgpt2_ref.kernels import products

    case.x.copy_(100 + 0.1 * torch.randn(case.x.shape, generator=torch.Generator().manual_seed(0)))
    case.c_proj.weight *= 1e-3
    case.c_proj.bias *= 1e-3
    x = Residual(case.x, case.norm)
    want = torch.nn.functional.linear(torch.nn.functional.layer_norm(
        case.x.double(), case.norm.normalized_shape, case.norm.weight.double(), case.norm.bias.double(), case.norm.eps),
        case.c_attn.weight.double(), case.c_attn.bias.double())
    wide = Wide(ROWS=16, B=16, DEPTH=16, STAGES=1, SPLITS=1, num_warps=4)
    for tile in (Gemv(4, 4), Skinny(16, 16, 2, 16, 4), wide):
        got = products.qkv(x, case.c_attn, case.state, tile=tile).double()
        assert (got - want).norm() < 3e-3 * want.norm(), (tile, (got - want).norm() / want.norm())
    left = products.add(case.inner, case.c_proj, x, case.norm, case.state, tile=wide, scaled=True)
    got, twin = products.qkv(left, case.c_attn, case.state, tile=wide), plain.qkv(left, case.c_attn, case.state)
    assert (got - twin).norm() < 1e-2 * twin.norm(), (got - twin).norm() / twin.norm()


def hold_steps_equal(filtered):
    """Steps of a whole model in a row, of more rows than `ALL_WIDE`: what one leaves behind doesn't meet the next."""
    c = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=32, vocab_size=67, eos_token_id=66)
    model, tokens = load_model(Checkpoint(c, None, {}), World.single()), []
    fused = replace(Kernels.choose(scaled_norm=True), attention=plain.attention)  # which has no part in that
    for kernels in (Kernels.choose(()), fused):
        state = DecodeState.empty(ALL_WIDE + 1, c.n_head, c.n_positions, torch.device("cpu"))
        state.live.fill_(1)
        state.sampling.copy_(torch.tensor([1.0, 5, 1] if filtered else [0.0, 0, 1]))
        state.seeds.fill_(3)
        state.ids.copy_(torch.arange(state.batch))
        state.block_table[:, 0] = torch.arange(1, state.batch + 1)
        kv_caches = allocate_kv_cache(c.n_layer, state.batch + 1, 16, c.n_head, c.head_size, torch.float32, "cpu")
        for _ in range(3):
            decode_step(model, kv_caches, state, kernels, filtered)
        tokens.append(state.tokens[:, 1:4])
    assert (tokens[0] == tokens[1]).float().mean() > 0.95 and (tokens[0] >= 0).all()

"""What runs on the ranks: a patient's forward, watched beside that of a healthy model that is not cut.

Before a collective the ranks tell one another what they are about to call, as torch does with
TORCH_DISTRIBUTED_DEBUG=DETAIL. So a hang is seen before anybody waits. Sums go through mailboxes with two slots that
are used in turn, as `parallel/all_reduce/push.py` has them in GPU memory; here a gather fills them.
"""
from __future__ import annotations

import copy
import hashlib
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ...attention.kv_cache import allocate_kv_cache
from ...attention.metadata import prefill_metadata
from ...config import GPT2Config
from ...parallel.all_reduce.base import AllReduce
from ...parallel.collectives import all_gather, gather_objects
from ...parallel.world import World
from ...trace import Trace
from ...weights import Checkpoint, load_model
from .illnesses import BUGS, HEALTHY, Bug

CONFIG = GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=64, vocab_size=257, eos_token_id=256)
NOISE = 1e-4  # an error below is rounding


@dataclass(frozen=True)
class Case:
    """Who was admitted: the bug, its layer, and what the model reads."""

    bug: Bug | None
    layer: int
    prompts: tuple[tuple[int, ...], ...]


def admitted(seed: int) -> Case:
    """The case that a seed stands for."""
    fate = hashlib.sha256(f"tpgpt2's ward, bed {seed}".encode()).digest()
    lengths = 3 + fate[2] % 4, 2 + fate[3] % 3
    tokens = [b for b in fate[4:] if b] + [256]  # the last token of the vocabulary is always read
    prompts = tuple(tokens[-lengths[0]:]), tuple(tokens[: lengths[1]])
    return Case((*BUGS, None)[fate[0] % (len(BUGS) + 1)], fate[1] % CONFIG.n_layer, prompts)


class Hang(Exception):
    """The ranks are about to call different things."""


class Watch(Trace):
    """A trace that first asks the other ranks what they are about to call."""

    def __init__(self, world):
        super().__init__()
        self.world, self.shapes = replace(world, trace=None), []

    @contextmanager
    def collective(self, op, tensor, path, layer):
        self.agree((op, layer, tuple(tensor.shape)))
        self.shapes.append(tuple(tensor.shape))
        with super().collective(op, tensor, path, layer) as row:
            yield row

    def agree(self, call: tuple) -> None:
        mark = torch.tensor([zlib.crc32(repr(call).encode())], device=self.world.device)
        if len(set(all_gather(mark, self.world).tolist())) > 1:
            raise Hang(gather_objects(call, self.world))


class Mailbox(AllReduce):
    """Each call's words lie in slot call % 2. `late_call`: there rank 0 finds rank 1's word of two calls ago."""

    name = "mailbox"

    def __init__(self, world):
        self.world, self.calls, self.slots, self.late_call = replace(world, trace=None), 0, [None, None], None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        words = list(all_gather(x[..., None], self.world).movedim(-1, 0))  # n * (T, D)
        old, self.slots[self.calls % 2] = self.slots[self.calls % 2], words
        if self.calls == self.late_call and self.world.rank == 0:
            words = [words[0], *old[1:]]
        self.calls += 1
        return torch.stack(words).sum(0)


@dataclass
class Forward:
    """What one forward left: outputs by place, the cache, the collectives, or where it hung."""

    outputs: dict[str, torch.Tensor]
    caches: list[torch.Tensor]
    hang: tuple | None


def forward(model, prompts) -> Forward:
    """One prefill of both prompts; `outputs` by place, in order: embedding, each attention and MLP, logits."""
    outputs, device = {}, model.world.device
    places = {"embedding": model.wte, **{f"layer {i} {name}": part for i, block in enumerate(model.h)
              for name, part in (("attention", block.attn), ("MLP", block.mlp))}, "logits": model.lm_head}
    hooks = [part.register_forward_hook(lambda module, args, out, place=place: outputs.update({place: out.clone()}))
             for place, part in places.items()]
    heads = CONFIG.n_head // model.world.size
    caches = allocate_kv_cache(CONFIG.n_layer, 3, 16, heads, CONFIG.head_size, torch.float32, device)
    table = torch.tensor([[1], [2]], dtype=torch.int32, device=device)
    meta, positions = prefill_metadata([len(p) for p in prompts], table)
    ids = torch.tensor([token for p in prompts for token in p], device=device)
    hang = None
    try:
        hidden = model(ids, positions, caches, meta)  # (T, D)
        model.logits(hidden[meta.query_start_loc[1:].long() - 1])  # (B, V)
        if model.world.trace is not None:
            model.world.trace.agree(("the end of the forward", "", ()))
    except Hang as e:
        hang = e.args[0]
    finally:
        for hook in hooks:
            hook.remove()
    return Forward(outputs, caches, hang)


def load(world):
    """One rank of the ward's model."""
    return load_model(Checkpoint(CONFIG, None, {}), world, backend="NAIVE")


@lru_cache(maxsize=1)
def healthy(world) -> tuple:
    """(the model that is not cut, this rank's part of it). Patients are held against the one, and are copies of the
    other."""
    return load(World.single(world.device)), load(replace(world))


@torch.inference_mode()
def examine(case: Case, world) -> dict:
    """All readings of a case, the same on every rank: {instrument: rows}."""
    whole, well = healthy(world)
    model = copy.deepcopy(well, {id(well.world): well.world})
    world = model.world
    world.all_reduces, world.trace = (Mailbox(world),), Watch(world)
    if case.bug:
        case.bug.infect(model, whole, case.layer, world)
    run, watch = forward(model, case.prompts), world.trace
    if run.hang:
        return {"hang_report": [{"rank": r, "is about to call": op, "in": layer, "shape": shape}
                                for r, (op, layer, shape) in enumerate(run.hang)]}
    calls = [{"op": row.op, "layer": row.layer, "shape": shape, "bytes": row.bytes}
             for row, shape in zip(watch.rows, watch.shapes)]
    world.trace = None
    right, again = forward(whole, case.prompts), forward(model, case.prompts)
    every = gather_objects({
        "errors": [error(run.outputs[place], out) for place, out in right.outputs.items()],
        "outputs": {place: out.cpu() for place, out in run.outputs.items()},
        "cache": [of_cache(run.caches[i], right.caches[i], world) for i in range(CONFIG.n_layer)],
        "shapes": [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.dim() == 2]
        + [("logits", tuple(run.outputs["logits"].shape))],
        "repeat": distance(again.outputs["logits"], run.outputs["logits"]),
    }, world)
    first = every[0]["outputs"]
    return {
        "error_by_layer": [{"place": place, "error": max(size for size, _ in of_ranks),
                            "same for every token": all(alike for _, alike in of_ranks)}
                           for place, *of_ranks in zip(first, *(rank["errors"] for rank in every))],
        "collectives": [{"op": op, "calls": sum(c["op"] == op for c in calls)} for op in ("all_reduce", "all_gather")],
        "bytes": calls,
        "shapes": [{"tensor": of_ranks[0][0], **{f"rank {r}": shape for r, (_, shape) in enumerate(of_ranks)}}
                   for of_ranks in zip(*(rank["shapes"] for rank in every))
                   if not of_ranks[0][0].startswith(("h.1", "h.2"))],
        "cache": [{"layer": i, "rank": r, **rank["cache"][i]} for i in range(CONFIG.n_layer)
                  for r, rank in enumerate(every)],
        "hang_report": [],
        "compare_ranks": [{"place": place, "difference": max(distance(rank["outputs"][place], out) for rank in every)}
                          for place, out in first.items()],
        "repeat": [{"rank": r, "difference": rank["repeat"]} for r, rank in enumerate(every)],
    }


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, as a part of the largest number. What one of them lacks is left out."""
    width = min(a.shape[-1], b.shape[-1])
    a, b = a[..., :width], b[..., :width]
    return float((a - b).abs().max() / b.abs().max())


def error(found: torch.Tensor, right: torch.Tensor) -> tuple[float, bool]:
    """How far an output is from that of the whole model, and whether it is off by the same for every token."""
    width = min(found.shape[-1], right.shape[-1])
    wrong = found[..., :width] - right[..., :width]  # (T, D), or (B, V) for the logits
    spread = float((wrong - wrong[:1]).abs().max() / wrong.abs().max().clamp(min=1e-30))
    size = distance(found, right)
    return size, size > NOISE and spread < 1e-2


def of_cache(mine: torch.Tensor, right: torch.Tensor, world) -> dict:
    """A rank's cached keys beside those of its own heads, and of the other ranks'."""
    parts = right[0].chunk(world.size, dim=-2)  # keys (pages, 16, H, d) -> n * (pages, 16, H/n, d)
    far = [distance(mine[0], part) for part in parts]
    return {"from its own heads": far[world.rank],
            "from another rank's": min(f for r, f in enumerate(far) if r != world.rank)}


def signs(readings: dict) -> dict:
    """What a doctor makes of all readings: the signs that `illnesses.py` speaks of."""
    if readings["hang_report"]:
        return {**HEALTHY, "hangs": True}
    first = next((row for row in readings["error_by_layer"] if row["error"] > NOISE), None)
    place = first["place"] if first else "nowhere"
    cache = "right"
    if place.endswith("attention"):  # below it, all that is cached is wrong because what came in was
        rows = [row for row in readings["cache"] if row["layer"] == int(place.split()[1])]
        if max(row["from its own heads"] for row in rows) > NOISE:
            cache = "foreign" if max(row["from another rank's"] for row in rows) < NOISE else "wrong"
    calls = {row["op"]: row["calls"] for row in readings["collectives"]}
    return {"hangs": False, "repeats": max(row["difference"] for row in readings["repeat"]) < NOISE,
            "shapes": "right" if readings["shapes"][-1]["rank 0"][-1] == CONFIG.vocab_size else "narrow",
            "sums": calls["all_reduce"] - 2 * CONFIG.n_layer - 1, "gathers": calls["all_gather"] - 1,
            "begins": place.split()[-1], "alike": bool(first and first["same for every token"]), "cache": cache,
            "agree": max(row["difference"] for row in readings["compare_ranks"]) < NOISE}


@lru_cache(maxsize=8)
def chart(seed: int, world) -> dict:
    """A patient is examined once; instruments read from that."""
    return examine(admitted(seed), world)


def reading(seed: int, instrument: str, world) -> tuple[list[dict] | None, int]:
    """(an instrument's rows, None where a forward that hangs leaves it nothing; tokens read)"""
    return chart(seed, world).get(instrument), sum(map(len, admitted(seed).prompts))


def judged(seed: int, name: str, world) -> dict:
    """Whether a diagnosis is right: what the bug is, or the first sign that speaks against it."""
    bug = admitted(seed).bug
    if name == (bug.name if bug else "healthy"):
        return {"right": True, "what": bug.what if bug else "Nothing is wrong.",
                "chapter": bug.chapter if bug else None}
    claimed = {**HEALTHY, **next((b.signs for b in BUGS if b.name == name), {})}
    seen = signs(chart(seed, world))
    sign = next(s for s in HEALTHY if claimed[s] != seen[s])
    return {"right": False, "sign": sign, "claimed": claimed[sign]}

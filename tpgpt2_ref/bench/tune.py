"""Find the decode kernels' tile sizes on this GPU: whole steps in CUDA graphs, one choice after the other.

  python -m tpgpt2_ref.bench.tune --write                 all batches, into kernels/tiles.json
  python -m tpgpt2_ref.bench.tune --imagine 1 2 --write   for a whole model, and one rank's own part of two
  python -m tpgpt2_ref.bench.tune --batch 1 --seconds 20  look only
  python -m tpgpt2_ref.bench.tune --choice attention      of one kernel alone
  python -m tpgpt2_ref.bench.tune --model gpt2-xl         of a larger model's shapes

A candidate must equal its plain twin before it is timed. A time is that of the model's whole step with random
weights, 247 MB of them or more, so no cache flatters it: the mean of a step with few tokens in the cache and one with
many, for attention that wins one can lose the other. The best of one choice is kept for the next.
"""
from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, median

import torch

from ..attention.kv_cache import allocate_kv_cache
from ..config import FAMILY
from ..engine.decode_step import decode_step
from ..files import write_whole
from ..kernels import Kernels, decode_attention, plain, products, tiles
from ..kernels.state import DecodeState, Residual
from ..parallel.world import World
from ..recorded.machine import machine_card
from ..recorded.results import BOOK_RESULTS, Run, save
from ..weights import load_model
from .stopwatch import captured, microseconds

FILE = Path(tiles.__file__).with_suffix(".json")
CONTEXTS, TOLERANCE = (192, 704), 2e-2
GAIN = 0.99  # less than a hundredth is chance


def gemv(*options):
    return [tiles.Gemv(*option) for option in options]


def skinny(*options, b=8):
    return [tiles.Skinny(r, b, s, d, w) for r, s, d, w in options]


def wide(*options):
    return [tiles.Wide(*option) for option in options]


def vector(*options):
    return [tiles.Vector(*option) for option in options]


def tensor_core(*options):
    return [tiles.TensorCore(*option) for option in options]


CANDIDATES = {
    1: dict(attention=vector((256, 4), (256, 8), (128, 4)) + tensor_core((64, 64, 1, 1)),
            gelu=gemv((4, 4), (8, 4), (2, 2)), qkv=gemv((8, 4), (4, 4), (4, 2)), long=gemv((2, 4), (4, 4), (2, 2)),
            add=gemv((8, 4), (4, 4), (16, 8)), argmax=gemv((16, 4), (8, 4), (32, 8))),
    8: dict(attention=vector((256, 4), (256, 8), (128, 4)) + tensor_core(
        (64, 64, 1, 2), (32, 128, 7, 1), (32, 256, 7, 1), (64, 128, 3, 4), (64, 256, 5, 4)),
            gelu=skinny((32, 4, 64, 4), (16, 4, 64, 4), (16, 8, 64, 8))
            + wide((16, 16, 256, 3, 1, 4), (32, 16, 256, 3, 1, 4), (64, 16, 128, 5, 1, 4)),
            long=skinny((16, 8, 128, 8)) + wide((16, 16, 256, 3, 4, 4), (16, 16, 256, 3, 2, 4), (16, 16, 512, 2, 2, 4),
                                                (32, 16, 256, 3, 6, 4), (64, 16, 128, 4, 8, 4)),
            qkv=skinny((16, 4, 64, 4), (32, 4, 64, 4), (16, 8, 64, 8))
            + wide((16, 16, 256, 3, 1, 4), (32, 16, 256, 3, 1, 4), (64, 16, 128, 5, 1, 4)),
            add=skinny((16, 4, 64, 4), (16, 2, 128, 4), (16, 8, 64, 8))
            + wide((16, 16, 256, 3, 1, 4), (16, 16, 128, 3, 2, 4), (32, 16, 256, 3, 3, 4)),
            argmax=wide((128, 16, 64, 4, 1, 4), (64, 16, 128, 4, 1, 4), (64, 16, 256, 3, 1, 4),
                        (128, 16, 128, 4, 1, 8))),
    16: dict(attention=vector((256, 8), (256, 4)) + tensor_core((32, 128, 5, 1), (32, 256, 9, 1)),
             gelu=skinny((16, 4, 64, 4), (32, 4, 64, 4), (16, 8, 64, 8), b=16)
             + wide((16, 16, 256, 3, 1, 4), (32, 16, 256, 3, 1, 4), (64, 16, 128, 5, 1, 4), (32, 64, 128, 5, 1, 4)),
             long=skinny((16, 8, 128, 8), (16, 8, 64, 8), (16, 4, 128, 4), b=16)
             + wide((16, 16, 256, 3, 4, 4), (32, 16, 256, 3, 6, 4), (64, 16, 128, 4, 8, 4), (32, 64, 128, 4, 4, 4)),
             qkv=skinny((32, 4, 64, 4), (16, 4, 64, 4), (16, 8, 64, 8), b=16)
             + wide((16, 16, 256, 3, 1, 4), (32, 16, 256, 3, 1, 4), (64, 16, 128, 5, 1, 4), (32, 64, 128, 5, 1, 4)),
             add=skinny((16, 4, 64, 4), (16, 2, 128, 4), (16, 8, 64, 8), b=16)
             + wide((16, 16, 256, 3, 1, 4), (16, 16, 128, 3, 2, 4), (32, 16, 256, 3, 3, 4), (16, 64, 128, 4, 1, 4)),
             argmax=wide((128, 16, 128, 4, 1, 8), (128, 16, 64, 4, 1, 4), (64, 16, 128, 4, 1, 4),
                       (64, 16, 256, 3, 1, 4))),
    32: dict(attention=tensor_core((32, 256, 9, 1), (32, 384, 7, 1), (32, 512, 7, 1)) + vector((256, 4)),
             long=wide((16, 64, 128, 4, 4, 4), (32, 64, 128, 4, 4, 4), (32, 64, 128, 4, 6, 4), (16, 32, 256, 3, 4, 4)),
             gelu=wide((32, 64, 128, 5, 1, 4), (16, 64, 256, 3, 1, 4), (32, 64, 128, 4, 1, 4), (32, 32, 256, 3, 1, 4)),
             qkv=wide((32, 64, 64, 6, 1, 4), (16, 64, 256, 3, 1, 4), (32, 64, 128, 4, 1, 4), (32, 32, 256, 3, 1, 4)),
             add=wide((16, 64, 128, 3, 2, 4), (16, 64, 128, 4, 1, 4), (16, 32, 256, 3, 1, 4)),
             argmax=wide((128, 64, 128, 3, 1, 8), (128, 64, 64, 4, 1, 4), (128, 32, 128, 4, 1, 8))),
    64: dict(attention=vector((256, 4)) + tensor_core(
                                            (32, 256, 7, 1), (32, 1024, 7, 1), (32, 1024, 5, 1), (32, 1024, 9, 1),
                                            (64, 1024, 5, 1), (64, 1024, 5, 2), (16, 1024, 9, 1), (32, 512, 7, 1),
                                            (32, 128, 5, 1), (32, 384, 7, 1), (32, 256, 5, 2), (64, 256, 4, 2),
                                            (64, 256, 4, 4), (64, 512, 5, 4), (32, 256, 9, 1)),
             long=wide((16, 64, 128, 4, 4, 4), (16, 64, 256, 3, 4, 4), (16, 64, 256, 3, 3, 4), (16, 64, 128, 4, 6, 4),
                       (32, 64, 128, 4, 4, 4), (32, 64, 128, 4, 6, 4), (32, 64, 128, 4, 8, 4), (16, 64, 64, 6, 4, 4)),
             gelu=wide((32, 64, 256, 3, 1, 4), (16, 64, 128, 4, 1, 4), (32, 64, 128, 4, 1, 4), (16, 64, 256, 3, 1, 4),
                       (32, 64, 256, 3, 1, 8), (32, 64, 64, 6, 1, 4), (16, 64, 64, 6, 1, 4), (32, 64, 128, 5, 1, 4),
                       (32, 64, 128, 3, 1, 4), (64, 64, 128, 3, 1, 4)),
             qkv=wide((16, 64, 128, 4, 1, 4), (32, 64, 256, 3, 1, 4), (16, 64, 256, 3, 1, 4), (32, 64, 64, 6, 1, 4),
                      (16, 64, 64, 6, 1, 4), (32, 64, 128, 4, 1, 4), (32, 64, 128, 3, 1, 4), (64, 64, 64, 4, 1, 4)),
             add=wide((16, 64, 256, 3, 1, 4), (16, 64, 128, 4, 1, 4), (16, 64, 128, 3, 2, 4), (32, 64, 128, 3, 3, 4),
                      (32, 64, 128, 3, 2, 4), (16, 64, 64, 4, 2, 4), (16, 64, 64, 6, 1, 4), (16, 64, 128, 4, 2, 4),
                      (16, 64, 128, 3, 3, 4)),
             argmax=wide((128, 64, 64, 4, 1, 4), (128, 64, 128, 3, 1, 8), (256, 64, 64, 3, 1, 8),
                         (64, 64, 128, 4, 1, 4), (128, 64, 64, 6, 1, 4))),
}


class Bench:
    """One batch size: a state, a random cache, and the step's time for any choice of tiles."""

    def __init__(self, model, batch: int):
        self.model, self.batch = model, batch
        config, impl, device = model.config, model.impl, model.world.device
        self.state = DecodeState.empty(batch, impl.num_heads, config.n_positions, device)
        pages = self.state.block_table.numel()
        self.kv = allocate_kv_cache(config.n_layer, pages + 1, 16, impl.num_heads, impl.head_size, impl.dtype, device)
        for cache in self.kv:
            cache.normal_()
        self.table = 1 + torch.arange(pages, dtype=torch.int32, device=device).view_as(self.state.block_table)
        self.x = torch.randn(batch, config.n_embd, device=device, dtype=impl.dtype)
        self.out = torch.randn(batch, impl.num_heads * impl.head_size, device=device, dtype=impl.dtype)
        self.qkv = torch.cat([self.out, self.out.flip(0), self.out.flip(1)], 1)
        self.inner = torch.randn(batch, model.h[0].mlp.c_proj.weight.shape[1], device=device, dtype=impl.dtype)
        self.occupy(CONTEXTS[0])

    def occupy(self, tokens: int):
        self.state.block_table.copy_(self.table)
        self.state.positions.fill_(tokens)
        self.state.live.fill_(1)

    def wrong(self, kind: str, tile) -> str | None:
        """Why a candidate is no candidate: it fails, or differs from its plain twin."""
        block, s = self.model.h[0], self.state
        x, to_mlp, to_head = (Residual(self.x, norm) for norm in (block.ln_1, block.ln_2, self.model.ln_f))
        calls = {"qkv": (x, block.attn.c_attn, s), "attention": (self.qkv, self.kv[0], s),
                 "gelu": (to_mlp, block.mlp.c_fc, s), "add": (self.out, block.attn.c_proj, x, block.ln_2, s),
                 "long": (self.inner, block.mlp.c_proj, x, block.ln_2, s), "argmax": (to_head, self.model.wte, s)}
        name = {"long": "add", "argmax": "head_argmax"}.get(kind, kind)
        try:
            room = decode_attention if kind == "attention" else products
            out = getattr(room, name)(*calls[kind], pdl=True, tile=tile)
            torch.cuda.synchronize()
        except Exception as e:  # too large for this GPU, or more than this Triton can do
            return f"{type(e).__name__}: {str(e)[:80]}"
        twin = getattr(plain, name)(*calls[kind])
        if kind == "argmax":
            out, twin = (plain.key_value(keys.amax(0)) for keys in (out, twin))  # the largest logits
        elif name == "add":
            out, twin = out.x, twin.x
        error = ((out.double() - twin.double()).norm() / twin.double().norm()).item()
        return None if error < TOLERANCE else f"differs from its twin by {error:.1e}"

    def microseconds(self, chosen: dict) -> float:
        def op(function, kind):
            return lambda *a, **more: function(*a, pdl=True, tile=chosen[kind(a)], **more)

        kernels = Kernels.choose(pdl=True, scaled_norm=self.model.world.size == 1)  # several: the sum normalizes
        kernels = replace(kernels, qkv=op(products.qkv, lambda a: "qkv"), gelu=op(products.gelu, lambda a: "gelu"),
                          add=op(products.add, lambda a: "long" if a[0].shape[1] == self.inner.shape[1] else "add"),
                          head_argmax=op(products.head_argmax, lambda a: "argmax"),
                          attention=op(decode_attention.attention, lambda a: "attention"))
        replay = captured(partial(decode_step, self.model, self.kv, self.state, kernels))
        medians = []
        for tokens in CONTEXTS:
            self.occupy(tokens)
            replay()
            medians.append(median(microseconds(lambda: [replay() for _ in range(10)], self.model.world.device) / 10
                                  for _ in range(5)))
        return mean(medians)


def tune(bench: Bench, chosen: dict, model: str, kinds: list[str], seconds: float, rows: list[dict]) -> dict:
    """The fastest tiles of these kinds found within so many seconds, starting from `chosen`.

    Each time taken goes into `rows`.
    """
    def note(choice, tile, us):
        rows.append({"model": model, "dtype": "bfloat16", "tp": bench.model.world.size, "batch": bench.batch,
                     "context": "+".join(map(str, CONTEXTS)), "choice": choice, "tile": str(tile),
                     "us_per_step": round(us, 1)})

    begin = time.monotonic()
    for kind, options in CANDIDATES[bench.batch].items():  # what is in the file may not run on this GPU
        known = [chosen[kind]] if kind in chosen else []
        chosen = chosen | {kind: next(tile for tile in (*known, *options) if not bench.wrong(kind, tile))}
    best = bench.microseconds(chosen)
    note("start", "", best)
    print(f"batch {bench.batch}: {best:.1f} us a step to begin with", flush=True)
    for kind, options in CANDIDATES[bench.batch].items():
        for tile in options if kind in kinds else ():
            if tile == chosen[kind] or time.monotonic() - begin > seconds:
                continue
            why = bench.wrong(kind, tile)
            try:
                us = None if why else bench.microseconds(chosen | {kind: tile})
            except RuntimeError as e:
                us, why = None, str(e)[:80]
            print(f"  {kind:10}{str(tile):90}" + (why or f"{us:8.1f} us"), flush=True)
            if us is not None:
                note(kind, tile, us)
                if us < best * GAIN:
                    best, chosen = us, chosen | {kind: tile}
    note("end", "", best)
    print(f"batch {bench.batch}: {best:.1f} us a step at the end", flush=True)
    return chosen


def as_json(measured: dict[tuple[int, int, int], dict]) -> str:
    """One choice a line."""
    parts = []
    for (batch, ranks, width), sizes in sorted(measured.items(), key=lambda item: item[0][::-1]):
        key = f"{batch}/{ranks}/{width}" if width != tiles.D else f"{batch}/{ranks}" if ranks > 1 else batch
        lines = ",\n".join(f'  "{k}": {json.dumps(tiles.to_json(v))}' for k, v in sizes.items())
        parts.append(f' "{key}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    parser.add_argument("--seconds", type=float, default=120.0, help="for each batch")
    parser.add_argument("--model", default="gpt2", choices=list(FAMILY), help="default: gpt2")
    parser.add_argument("--choice", nargs="+", default=list(CANDIDATES[1]), choices=list(CANDIDATES[1]),
                        help="kernels whose tiles are tried (default: all)")
    parser.add_argument("--write", action="store_true", help=f"keep what was found in {FILE.name}")
    parser.add_argument("--record", nargs="?", const=str(BOOK_RESULTS), metavar="DIR", help="save every time taken as "
                        "decode_tiles, or as CHOICE_tiles where one is tried (default DIR: the book's results)")
    parser.add_argument("--imagine", type=int, nargs="+", default=[1], choices=(1, 2, 4), metavar="N",
                        help="one rank's part of N")
    args, rows = parser.parse_args(), []
    measured, name = dict(tiles.MEASURED), f"{args.choice[0] if len(args.choice) == 1 else 'decode'}_tiles"
    for ranks in args.imagine:
        model = load_model(f"random:{args.model}", World.single("cuda").imagine(ranks), dtype="bfloat16")
        width = model.config.n_embd
        for batch in args.batch:
            known, key = {}, (batch, ranks, width)
            for n, w in [*product(range(1, ranks + 1), (tiles.D,)), (ranks, width)]:  # of what is nearest, the last
                known |= measured.get((batch, n, w), {})
            with torch.inference_mode():
                found = tune(Bench(model, batch), known, args.model, args.choice, args.seconds, rows)
            measured[key] = measured.get(key, {}) | {kind: found[kind] for kind in args.choice}
            if args.write:
                write_whole(FILE, as_json(measured))
            if args.record:
                save(Run(name, machine_card(), rows), args.record)


if __name__ == "__main__":
    main()

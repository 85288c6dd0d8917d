"""Generate text with a tensor-parallel GPT-2.

  python -m tpgpt2_ref generate --model tiny --tp 2 --prompt "Return True if all"
  python -m tpgpt2_ref generate --model gpt2 --tp 2 --device cuda --prompt "Attention is"
  torchrun --nproc-per-node 2 -m tpgpt2_ref generate --model random:gpt2 --prompt-ids 1,2,3

It starts its own ranks, one a GPU (or CPU processes), or joins those of torchrun. Greedy unless --temperature is
given. Generation stops at the checkpoint's end token, which is then the last id.
"""
from __future__ import annotations

import time
from statistics import median

from ..parallel.times import mark
from ..request import SamplingParams
from .arguments import add_model_arguments, add_prompt_arguments, dtype, ranks, read_prompts

__all__ = ["HELP", "add_arguments", "check", "ranks", "run", "show"]
HELP = "generate text, on one rank or several"
SHORT = 256  # new tokens: their eager steps take a second, what graphs need first takes several


def add_arguments(parser):
    add_model_arguments(parser)
    add_prompt_arguments(parser, repeatable=True)
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N")
    parser.add_argument("--graphs", action="store_true", help=f"on GPUs: record CUDA graphs even for up to {SHORT} "
                        "new tokens, though the text comes later then")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among the K likeliest (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample among the likeliest that "
                        "together hold probability P")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same tokens at every TP size")


def check(args):
    args.sampling = SamplingParams(args.temperature, args.top_k, args.top_p, args.seed)
    read_prompts(args, args.max_new_tokens)
    args.short = args.device == "cuda" and args.max_new_tokens <= SHORT and not args.graphs
    if args.short and args.sum == "auto":
        args.sum = "c10d"


def run(args, world) -> dict:
    from ..engine import Engine
    from ..engine.ladder import LADDER
    from ..weights import load_model

    start = time.perf_counter()
    model = load_model(args.checkpoint, world, args.plan, dtype(args), args.backend)
    loaded = time.perf_counter()
    mark("model loaded")
    engine = Engine(model, rung=LADDER[0] if args.short else None)
    if args.short:
        engine.decoding.why_not = f"{args.max_new_tokens} tokens come sooner without (--graphs records them)"
    new = engine.generate(args.token_ids, args.max_new_tokens, args.sampling)
    mark("generated")
    errors = "replace" if args.json else "surrogateescape"
    steps = engine.seconds["decode"]
    return {
        "token_ids": new, "text": texts(args.tokenizer, new, errors),
        "prompts": texts(args.tokenizer, args.token_ids, errors),
        "model": args.model, "tp": world.size, "plan": args.plan,
        "backend": model.impl.name, "decode_attention": engine.decode_attention, "why": model.choice.why,
        "device": str(world.device), "dtype": dtype(args),
        "world": world.backend, "collectives": engine.first_forward, "eager_because": engine.why_eager,
        "no_clusters_because": engine.why_no_clusters,
        "timings": {"load_s": loaded - start, "prefill_s": sum(engine.seconds["prefill"]),
                    "decode_s": sum(steps), "decode_steps": len(steps),
                    "decode_step_ms_median": median(steps) * 1e3 if steps else None},
    }


def show(result: dict) -> str:
    t = result["timings"]
    moved = ", ".join(f"{n} {op}" for op, n in result["collectives"].items()) or "no collectives"
    step = f", {t['decode_step_ms_median']:.2f} ms a decode step" if t["decode_steps"] else ""
    head = (f"[{result['model']}, TP={result['tp']} ({result['world']}), {result['plan']}, {result['backend']}, "
            f"{result['dtype']}; a forward: {moved}; load {t['load_s']:.1f} s{step}]")
    if result["eager_because"] and result["device"] != "cpu":
        head += f"\n[decoding without CUDA graphs: {result['eager_because']}]"
    prompts, text = result["prompts"], result["text"]
    said = [whole(p + t) for p, t in zip(prompts, text)] if prompts and text else map(str, result["token_ids"])
    return "\n".join([*said, head])


def texts(tokenizer, token_ids, errors: str = "surrogateescape") -> list[str] | None:
    """Text of each list of ids; None without a tokenizer, or where it has no word for one of them.

    A character may begin in the prompt and end in what was generated: with "surrogateescape" its bytes stay what they
    are until `whole` sees them joined; with "replace" each part is U+FFFD.
    """
    decoded = [tokenizer.decode_bytes(ids) for ids in token_ids] if tokenizer else [None]
    return None if None in decoded else [data.decode("utf-8", errors) for data in decoded]


def whole(text: str) -> str:
    """A text whose bytes are together again; what is still no character is U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

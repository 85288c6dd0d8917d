"""Generate text with a tensor-parallel GPT-2.

  python -m tpgpt2_ref generate --model tiny --tp 2 --prompt "The list"
  python -m tpgpt2_ref generate --model gpt2 --tp 2 --device cuda --prompt "Attention is"
  torchrun --nproc-per-node 2 -m tpgpt2_ref generate --model random:gpt2 --prompt-ids 1,2,3

It starts its own ranks, one a GPU (or CPU processes), or joins those of torchrun. Greedy unless --temperature is
given. Generation stops at the checkpoint's end token, which is then the last id.
"""
from __future__ import annotations

import time
from contextlib import redirect_stderr
from io import StringIO
from statistics import median

from ..config import DTYPES, PLANS
from ..errors import UserError
from ..request import SamplingParams, check_prompts
from ..tokenizer import load_tokenizer
from ..weights import find_checkpoint

HELP = "generate text, on one rank or several"


def add_model_arguments(parser):
    """What generate, logits, trace and bench share: which model, how it is split, where it runs."""
    parser.add_argument("--model", default="tiny", help="a hub name (gpt2), a folder with config.json and "
                        "safetensors, tiny (on board), or random:gpt2 (random weights in the real shapes)")
    parser.add_argument("--tp", type=int, default=None, metavar="N", help="ranks to split the model over "
                        "(default: 1, or torchrun's)")
    parser.add_argument("--plan", choices=PLANS, default="shipped", help="shipped: heads stay on their rank; "
                        "as-drawn: q, k, v gathered, the output split again. Same logits")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="default: float32 on CPU, bfloat16 on GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None, help="default: cuda where there is a GPU")
    parser.add_argument("--backend", default=None, metavar="NAME", help="force an attention backend "
                        "(default: the selector's choice, see the command select)")
    parser.add_argument("--sum", default="auto", metavar="NAME", help="force a way to all-reduce, such as nccl")


def add_prompt_arguments(parser, repeatable: bool):
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt as text")
    prompt.add_argument("--prompt-ids", metavar="1,2,3", action="append" if repeatable else "store",
                        help="the prompt as token ids" + (" (repeat it for a batch)" if repeatable else ""))


def add_arguments(parser):
    add_model_arguments(parser)
    add_prompt_arguments(parser, repeatable=True)
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among the K likeliest (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample among the likeliest that "
                        "together hold probability P")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same tokens at every TP size")


def ranks(args) -> int:
    return 1 if args.tp is None else args.tp


def check(args):
    config, _ = find_checkpoint(args.model)
    check_names(args, config)
    check_prompt_arguments(args, config, args.max_new_tokens)
    sampling_params(args)


def check_names(args, config):
    """Refuse an unknown or unfit attention backend, or way to sum, before any rank starts."""
    if args.sum != "auto":
        from ..parallel.all_reduce import WAYS

        if args.sum not in (known := ("auto", "nccl", "gloo", *WAYS)):
            raise UserError(f"unknown way to sum {args.sum!r}; known: {', '.join(known)}")
    if args.backend is not None:
        from ..attention.platform import this_machine
        from ..attention.selector import get_attn_backend

        get_attn_backend(config.n_head, config.head_size, dtype(args), force=args.backend,
                         platform=this_machine(args.device))


def run(args, world) -> dict:
    from ..engine import Engine
    from ..weights import load_model

    start = time.perf_counter()
    model = load_model(args.model, world, args.plan, dtype(args), args.backend)
    loaded = time.perf_counter()
    token_ids, tokenizer = prompts(args, model.config)
    engine = Engine(model)
    new = engine.generate(token_ids, args.max_new_tokens, sampling_params(args))
    steps = engine.seconds["decode"]
    return {
        "token_ids": new, "text": texts(tokenizer, new), "model": args.model, "tp": world.size, "plan": args.plan,
        "backend": model.impl.name, "why": model.choice.why, "device": str(world.device), "dtype": dtype(args),
        "world": world.backend, "collectives": engine.first_forward,
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
    return "\n".join([*(result["text"] or map(str, result["token_ids"])), head])


def dtype(args) -> str:
    return args.dtype or ("bfloat16" if args.device == "cuda" else "float32")


def sampling_params(args) -> SamplingParams:
    return SamplingParams(args.temperature, args.top_k, args.top_p, args.seed)


def prompts(args, config) -> tuple[list[list[int]], object]:
    """(token ids of each prompt, tokenizer or None)."""
    tokenizer = load_tokenizer(args.model, config.vocab_size)
    if args.prompt_ids is not None:
        given = [args.prompt_ids] if isinstance(args.prompt_ids, str) else args.prompt_ids
        try:
            return [[int(t) for t in p.split(",")] for p in given], tokenizer
        except ValueError as e:
            raise UserError(f"--prompt-ids takes whole numbers separated by commas, such as 1,2,3: {e}") from e
    if args.prompt is None:
        raise UserError("no prompt: give --prompt TEXT or --prompt-ids 1,2,3")
    if tokenizer is None:
        raise UserError(f"{args.model} has {config.vocab_size} tokens, too few for text: give --prompt-ids 1,2,3")
    return [tokenizer.encode(args.prompt)], tokenizer


def check_prompt_arguments(args, config, max_new_tokens: int = 1):
    """In the parent, quietly: what the tokenizer has to say, rank 0 says."""
    with redirect_stderr(StringIO()):
        check_prompts(config, prompts(args, config)[0], max_new_tokens)


def texts(tokenizer, token_ids) -> list[str] | None:
    """Text of each list of ids; None without a tokenizer, or where it has no word for one of them."""
    decoded = [tokenizer.decode(ids) for ids in token_ids] if tokenizer else [None]
    return None if None in decoded else decoded

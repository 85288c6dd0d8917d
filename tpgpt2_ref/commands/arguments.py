"""What several commands share: which model, how it is split, where it runs, and the prompts. Imports no torch."""
from __future__ import annotations

import os

from ..config import DTYPES, PLANS
from ..errors import UserError
from ..request import check_prompts
from ..tokenizer import load_tokenizer
from ..weights import find_checkpoint


def add_model_arguments(parser):
    """--model, --tp, --plan, --dtype, --device, --backend and --sum."""
    parser.add_argument("--model", default="tiny", help="a hub name (gpt2), a folder with config.json and "
                        "safetensors, tiny (on board), or random:gpt2 (random weights in the real shapes)")
    parser.add_argument("--tp", type=int, default=None, metavar="N", help="ranks to split the model over "
                        "(default: 1, or torchrun's)")
    parser.add_argument("--plan", choices=PLANS, default="shipped", help="shipped: heads stay on their rank; "
                        "as-drawn: q, k, v gathered, the output split again. Same logits")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="default: float32 on CPU, bfloat16 on GPU "
                        "(float16 below SM 8.0)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None, help="default: cuda where there is a GPU")
    parser.add_argument("--backend", default=None, metavar="NAME", help="force an attention backend "
                        "(default: the selector's choice, see the command select)")
    parser.add_argument("--check", action="store_true", help="the ranks agree on each collective before data moves: "
                        "slower, and a mismatch or a rank that left is named")
    parser.add_argument("--sum", default="auto", metavar="NAME", help="force an all-reduce algorithm, such as nccl")


def add_imagine_argument(parser):
    parser.add_argument("--imagine", type=int, metavar="N", help="one rank's own part of a model split over N: nothing "
                        "is sent, so what is missing from the time of N ranks is what communication costs")


def check_imagine(args):
    if args.imagine is not None and (args.imagine < 2 or args.tp not in (None, 1)):
        raise UserError("--imagine takes 2 ranks or more, and one real one: leave --tp out")


def add_prompt_arguments(parser, repeatable: bool):
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt as text")
    prompt.add_argument("--prompt-ids", metavar="1,2,3", action="append" if repeatable else "store",
                        help="the prompt as token ids" + (" (repeat it for a batch)" if repeatable else ""))


def ranks(args) -> int:
    return 1 if args.tp is None else args.tp


def check_names(args, config):
    """Refuse an unknown or unfit attention backend, or all-reduce algorithm, before any rank starts."""
    if args.sum != "auto":
        from ..parallel.all_reduce import ALGORITHMS

        if args.sum not in (known := ("auto", "nccl", "gloo", *ALGORITHMS)):
            raise UserError(f"unknown all-reduce algorithm {args.sum!r}; known: {', '.join(known)}")
    if args.backend is not None:
        from ..attention.platform import this_machine
        from ..attention.selector import get_attn_backend

        get_attn_backend(config.n_head, config.head_size, dtype(args), force=args.backend,
                         platform=this_machine(args.device))


def dtype(args) -> str:
    """As asked, or what this machine computes in by default."""
    if args.dtype or args.device != "cuda":
        return args.dtype or "float32"
    from ..attention.platform import this_machine

    return this_machine().default_dtype


def read_prompts(args, max_new_tokens: int = 1) -> None:
    """What the model and prompt arguments stand for, found and checked once: `args.checkpoint`, the `args.tokenizer`
    or None, and `args.token_ids`, a list for each prompt."""
    args.checkpoint = find_checkpoint(args.model)
    config = args.checkpoint.config
    check_names(args, config)
    args.tokenizer = load_tokenizer(args.model, config.vocab_size)
    if args.prompt_ids is not None:
        given = [args.prompt_ids] if isinstance(args.prompt_ids, str) else args.prompt_ids
        try:
            args.token_ids = [[int(t) for t in p.split(",")] for p in given]
        except ValueError as e:
            raise UserError(f"--prompt-ids takes whole numbers separated by commas, such as 1,2,3: {e}") from e
    elif args.prompt is None:
        raise UserError("no prompt: give --prompt TEXT or --prompt-ids 1,2,3")
    elif args.tokenizer is None:
        raise UserError(f"{args.model} has {config.vocab_size} tokens and no tokenizer to make text of them "
                        "(tokenizer.json, or vocab.json and merges.txt): give --prompt-ids 1,2,3")
    else:
        args.token_ids = [args.tokenizer.encode(as_text(args.prompt))]
    check_prompts(config, args.token_ids, max_new_tokens)


def as_text(argument: str) -> str:
    """An argument as the text that its bytes are in UTF-8, whatever the locale says. Raises UserError for others."""
    try:
        argument.encode()
        return argument
    except UnicodeEncodeError:
        pass  # bytes that the locale has no letters for
    try:
        return os.fsencode(argument).decode()
    except UnicodeError as e:
        raise UserError(f"--prompt is no UTF-8 text ({e}): give --prompt-ids 1,2,3 for other bytes") from e

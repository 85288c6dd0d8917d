"""Write the logits of one prompt to a NumPy file: float32, (tokens, vocabulary).

  python -m tpgpt2_ref logits --model random:gpt2 --tp 2 --prompt-ids 1,2,3 --out logits.npy
"""
from __future__ import annotations

from io import BytesIO

from ..files import check_writable, write_whole
from .arguments import add_model_arguments, add_prompt_arguments, dtype, ranks, read_prompts

__all__ = ["HELP", "add_arguments", "check", "ranks", "run", "show"]
HELP = "write the logits of a prompt to a .npy file"


def add_arguments(parser):
    add_model_arguments(parser)
    add_prompt_arguments(parser, repeatable=False)
    parser.add_argument("--out", required=True, metavar="FILE.npy", help="where to write")


def check(args):
    check_writable(args.out)
    read_prompts(args)


def run(args, world) -> dict:
    import numpy as np

    from ..engine import prompt_logits
    from ..weights import load_model

    model = load_model(args.checkpoint, world, args.plan, dtype(args), args.backend)
    logits = prompt_logits(model, args.token_ids[0]).cpu().numpy()  # (T, V)
    if world.rank == 0:
        np.save(file := BytesIO(), logits)
        write_whole(args.out, file.getvalue())
    return {"out": args.out, "shape": list(logits.shape), "model": args.model, "tp": world.size, "plan": args.plan,
            "backend": model.impl.name, "device": str(world.device), "dtype": dtype(args)}


def show(result: dict) -> str:
    return (f"{result['out']}: float32 {tuple(result['shape'])}, {result['model']} at TP={result['tp']}, "
            f"{result['plan']}")

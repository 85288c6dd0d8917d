"""Write the logits of one prompt to a NumPy file: float32, (tokens, vocabulary).

  python -m tpgpt2_ref logits --model random:gpt2 --tp 2 --prompt-ids 1,2,3 --out logits.npy
"""
from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError
from ..weights import find_checkpoint
from .arguments import (
    add_model_arguments,
    add_prompt_arguments,
    check_names,
    check_prompt_arguments,
    dtype,
    prompts,
    ranks,
)

__all__ = ["HELP", "add_arguments", "check", "ranks", "run", "show"]
HELP = "write the logits of a prompt to a .npy file"


def add_arguments(parser):
    add_model_arguments(parser)
    add_prompt_arguments(parser, repeatable=False)
    parser.add_argument("--out", required=True, metavar="FILE.npy", help="where to write")


def check(args):
    config = find_checkpoint(args.model).config
    check_names(args, config)
    check_prompt_arguments(args, config)
    folder = Path(args.out).resolve().parent
    if not folder.is_dir():
        raise UserError(f"--out {args.out}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK) or Path(args.out).is_dir():
        raise UserError(f"--out {args.out}: cannot write there")


def run(args, world) -> dict:
    import numpy as np

    from ..engine import prompt_logits
    from ..weights import load_model

    model = load_model(args.model, world, args.plan, dtype(args), args.backend)
    logits = prompt_logits(model, prompts(args, model.config)[0][0]).cpu().numpy()
    if world.rank == 0:
        part = Path(f"{args.out}.part")  # never a half-written file under the name asked for
        with part.open("wb") as f:
            np.save(f, logits)
        part.replace(args.out)
    return {"out": args.out, "shape": list(logits.shape), "model": args.model, "tp": world.size, "plan": args.plan,
            "backend": model.impl.name, "device": str(world.device), "dtype": dtype(args)}


def show(result: dict) -> str:
    return (f"{result['out']}: float32 {tuple(result['shape'])}, {result['model']} at TP={result['tp']}, "
            f"{result['plan']}")

"""Ask which attention kernel runs and why not the others, on this machine or on one you don't own (Diagram 1).

  python -m tpgpt2_ref select
  python -m tpgpt2_ref select --platform cuda --capability 8.0 --head-size 80
  python -m tpgpt2_ref select --platform rocm --installed triton
  VLLM_ATTENTION_BACKEND=FLEX_ATTENTION python -m tpgpt2_ref select
"""
from __future__ import annotations

from dataclasses import asdict

from ..attention.matrix import PACKAGES
from ..attention.platform import KINDS, Platform, this_machine, version
from ..attention.selector import get_attn_backend
from ..config import GPT2Config
from ..errors import UserError

HELP = "say which attention kernel runs here, or on a machine you describe, and why"


def add_arguments(parser):
    machine = parser.add_argument_group("a machine to imagine (without these: this one)")
    machine.add_argument("--platform", help=", ".join(KINDS))
    machine.add_argument("--capability", help="compute capability of the NVIDIA GPU (9.0, if only --platform is given)")
    machine.add_argument("--cuda-version", help="CUDA version (12.4, if only --platform is given)")
    machine.add_argument("--installed", metavar="all|NAME,...",
                         help=f"packages: {', '.join(PACKAGES)}; PyTorch is always there (all)")
    parser.add_argument("--head-size", type=int, default=GPT2Config().head_size)
    parser.add_argument("--dtype", default="float16", help="float32, float16 or bfloat16")
    parser.add_argument("--block-size", type=int, default=16, help="tokens a page of the KV cache")
    parser.add_argument("--force", metavar="NAME", help="priority 1: ask for a backend by name")


def run(args, world) -> dict:
    return asdict(get_attn_backend(GPT2Config().n_head, args.head_size, args.dtype, args.block_size,
                                   force=args.force, platform=imagined(args)))


def imagined(args) -> Platform:
    """The machine that the options describe; this one if they describe none."""
    if not any((args.platform, args.capability, args.cuda_version, args.installed)):
        return this_machine()
    kind = args.platform or "cuda"
    cuda = kind == "cuda"
    return Platform(kind, version(args.capability or "9.0") if cuda or args.capability else None,
                    version(args.cuda_version or "12.4") if cuda or args.cuda_version else None,
                    packages(args.installed or "all"))


def packages(text: str) -> frozenset[str]:
    """ "all", or names as one installs or imports them: flash-attn, flash_attn."""
    if text == "all":
        return frozenset(PACKAGES)
    names = {name.strip().replace("_", "-") for name in text.split(",")} - {"", "none", "torch"}
    names = {"flash-attn-3" if name == "flash-attn-interface" else name for name in names}
    if unknown := names - PACKAGES.keys():
        raise UserError(f"unknown package {', '.join(sorted(unknown))}; known: all, none, {', '.join(PACKAGES)}")
    return frozenset(names)


def show(result) -> str:
    lines = [f"{result['backend']}  ({result['source']}: {result['why']})"]
    for name, reasons in result["rejected"].items():
        lines.append(f"  not {name:<14} {'; '.join(reasons)}")
    return "\n".join(lines)

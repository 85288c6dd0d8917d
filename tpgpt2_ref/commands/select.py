"""Ask which attention kernel runs and why not the others, on this machine or on one you don't own (Diagram 1).

  python -m tpgpt2_ref select
  python -m tpgpt2_ref select --platform cuda --capability 8.0 --head-size 80
  python -m tpgpt2_ref select --platform rocm --installed triton
  python -m tpgpt2_ref select --as vllm-0.11.0 --capability 10.0 --dtype bfloat16 --installed flashinfer
  VLLM_ATTENTION_BACKEND=FLEX_ATTENTION python -m tpgpt2_ref select

With --as the answer of that vLLM stands beside this package's own: from its rules (`attention/vllm_rules.toml`), with
its own names. --force is then what the program names there: a global force in 0.11, AttentionConfig.backend since.
"""
from __future__ import annotations

from dataclasses import asdict

from ..attention import vllm_rules
from ..attention.matrix import PACKAGES
from ..attention.platform import KINDS, Platform, this_machine, version
from ..attention.selector import environment_backend, get_attn_backend
from ..config import GPT2Config
from ..errors import UserError

HELP = "say which attention kernel runs here, or on a machine you describe, and why; or which one vLLM would run"
VLLM_PACKAGES = ("flashinfer", "xformers", "aiter")  # that vLLM's choice depends on
AS = tuple(f"vllm-{name}" for name in vllm_rules.versions())


def add_arguments(parser):
    machine = parser.add_argument_group("a machine to imagine (without these: this one)")
    machine.add_argument("--platform", help=", ".join(KINDS))
    machine.add_argument("--capability", help="compute capability of the NVIDIA GPU (9.0, if only --platform is given)")
    machine.add_argument("--cuda-version", help="CUDA version (12.4, if only --platform is given)")
    machine.add_argument("--installed", metavar="all|NAME,...",
                         help=f"packages: {', '.join(PACKAGES)}; PyTorch is always there (all). With --as also "
                              f"{', '.join(VLLM_PACKAGES)} (what that vLLM requires)")
    parser.add_argument("--head-size", type=int, default=GPT2Config().head_size)
    parser.add_argument("--dtype", default="float16", help="float32, float16 or bfloat16")
    parser.add_argument("--block-size", type=int, help="tokens a page of the KV cache (16)")
    parser.add_argument("--cache-dtype", default="auto", help=f"of the KV cache: {', '.join(vllm_rules.CACHE_DTYPES)}")
    parser.add_argument("--force", metavar="NAME", help="priority 1: ask for a backend by name")
    parser.add_argument("--as", dest="version", metavar="VERSION", help=f"answer as vLLM would: {', '.join(AS)}")


def run(args, world) -> dict:
    if args.version is None:
        return ours(args)
    if args.version not in AS:
        raise UserError(f"no rules of {args.version!r}; there are those of {', '.join(AS)}")
    theirs = vllm(args)  # the mistakes that both refuse are refused first by the one that was asked for
    try:
        return {**theirs, "ours": ours(args)}
    except UserError as e:
        return {**theirs, "ours": {"backend": None, "error": str(e)}}


def ours(args) -> dict:
    """This package's own choice. fp8 is fp8_e4m3, as in vLLM."""
    cache_dtype = "fp8_e4m3" if args.cache_dtype == "fp8" else args.cache_dtype
    return asdict(get_attn_backend(GPT2Config().n_head, args.head_size, args.dtype,
                                   16 if args.block_size is None else args.block_size, cache_dtype,
                                   force=args.force, platform=imagined(args)))


def vllm(args) -> dict:
    """That vLLM's choice, as `vllm_rules.select_as` gives it."""
    for what, value in (("head size", args.head_size), ("block size", args.block_size)):
        if value is not None and value < 1:
            raise UserError(f"the {what} must be at least 1, not {value}")
    platform = imagined(args)
    capability = platform.capability and 10 * platform.capability[0] + platform.capability[1]
    return vllm_rules.select_as(
        args.version.removeprefix("vllm-"), platform=platform.kind, capability=capability, head_size=args.head_size,
        dtype=args.dtype, cache_dtype=args.cache_dtype, block_size=args.block_size, program=args.force,
        env=environment_backend(), installed=vllm_packages(args.installed))


def imagined(args) -> Platform:
    """The machine that the options describe; this one if they describe none."""
    if not any((args.platform, args.capability, args.cuda_version, args.installed)):
        return this_machine()
    kind = args.platform or "cuda"
    cuda = kind == "cuda"
    return Platform(kind, version(args.capability or "9.0") if cuda or args.capability else None,
                    version(args.cuda_version or "12.4") if cuda or args.cuda_version else None,
                    packages(args.installed or "all", VLLM_PACKAGES if args.version else ()))


def packages(text: str, others: tuple[str, ...] = ()) -> frozenset[str]:
    """ "all", or names as one installs or imports them: flash-attn, flash_attn. `others` are known, and left out."""
    if text == "all":
        return frozenset(PACKAGES)
    names = named(text) - {"none", "torch"} - (set(others) - PACKAGES.keys())
    names = {"flash-attn-3" if name == "flash-attn-interface" else name for name in names}
    if unknown := names - PACKAGES.keys():
        raise UserError(f"unknown package {', '.join(sorted(unknown))}; known: all, none, "
                        f"{', '.join(dict.fromkeys((*PACKAGES, *others)))}")
    return frozenset(names)


def vllm_packages(text: str | None) -> list[str] | None:
    """Those that vLLM's choice depends on: None, what the wheel requires, where the user names none."""
    if text is None:
        return None
    return list(VLLM_PACKAGES) if text == "all" else sorted(named(text) & set(VLLM_PACKAGES))


def named(text: str) -> set[str]:
    return {name.strip().replace("_", "-") for name in text.split(",")} - {""}


def show(result) -> str:
    if "version" in result:
        return show_vllm(result)
    lines = [f"{result['backend']}  ({result['source']}: {result['why']})"]
    for name, reasons in result["rejected"].items():
        lines.append(f"  not {name:<14} {'; '.join(reasons)}")
    return "\n".join(lines)


def show_vllm(result) -> str:
    flash = f", FlashAttention {result['flash_version']}" if result["flash_version"] else ""
    lines = [f"vLLM {result['version']}: {result['backend'] or 'refuses'}{flash}  ({result['by']}; {result['at']})"]
    lines += [f"  not {name:<14} {'; '.join(reasons)}" for name, reasons in result["rejected"].items()]
    lines += [f"  then {', '.join(result['lower'])}"] * bool(result["lower"])
    lines += [f"  note: {note}" for note in result["notes"]]
    if result["error"]:
        lines.append(f"  {'when it is built' if result['backend'] else 'error'}: {result['error']}")
    mine = result["ours"]
    return "\n".join([*lines, f"ours: {mine['backend'] or 'refuses: ' + mine['error']}"])

"""Diagram 1: which attention kernel runs, and why not the others.

    priority 1  force        an argument of the program
    priority 2  environment  VLLM_ATTENTION_BACKEND
    priority 3  platform     the first in `matrix.ORDER` that can run

Every answer is computed anew: nothing is cached, so a force or an environment variable set later is obeyed.
A package is imported only when everything else speaks for its backend, so only the chosen one is loaded.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module

from ..config import DTYPES
from ..errors import UserError
from .matrix import ALIASES, CACHE_DTYPES, FLASH_ATTN, MATRIX, ORDER, Support
from .platform import Platform, this_machine


@dataclass(frozen=True)
class Choice:
    """The answer.

    backend   a name of `matrix.MATRIX`
    why       one sentence
    rejected  {name: [reasons]} for every other backend
    source    whose word it was: "force", "environment" or "platform"
    """

    backend: str
    why: str
    rejected: dict[str, list[str]]
    source: str

    def bind(self) -> type:
        """The backend's class. Its kernel's package is imported when one is constructed."""
        return resolve(self.backend)


def get_attn_backend(num_heads: int, head_size: int, dtype, block_size: int = 16, cache_dtype: str = "auto",
                     force: str | None = None, platform: Platform | None = None) -> Choice:
    """Choose a kernel for one rank's attention layer.

    num_heads, head_size     of this rank
    dtype                    a torch.dtype or its name
    block_size, cache_dtype  of the paged KV cache
    force                    a backend's name, or FLASH_ATTN for the best FlashAttention of the machine
    platform                 a machine to imagine; None is this one
    Raises UserError, with the reasons, if what was asked for by name can't run.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    for what, value in (("number of heads", num_heads), ("head size", head_size), ("block size", block_size)):
        if not isinstance(value, int):
            raise UserError(f"the {what} must be a whole number, not {value!r}")
        if value < 1:
            raise UserError(f"the {what} must be at least 1, not {value}")
    if cache_dtype not in CACHE_DTYPES:
        raise UserError(f"unknown KV cache dtype {cache_dtype!r}; known: {', '.join(CACHE_DTYPES)}")
    platform = platform or this_machine()
    asked, source, word = force, "force", f"the program names {force}"  # priority 1
    if not asked:
        asked = environment_backend()  # priority 2
        source, word = "environment", f"VLLM_ATTENTION_BACKEND names {asked}"
    names = expand(asked) if asked else ORDER[platform.kind]  # priority 3

    def reasons(name: str, import_it: bool) -> list[str]:
        support = MATRIX[name]
        return (support.reasons(platform, head_size, dtype, block_size, cache_dtype)
                or missing(support, platform, import_it))

    rejected, chosen = {}, None
    for name in names:
        rejected[name] = reasons(name, import_it=True)
        if not rejected[name]:
            chosen = name
            break
    if chosen is None:
        told = "; ".join(f"{name}: {', '.join(why)}" for name, why in rejected.items())
        raise UserError(f"{word}, which can't run on {platform}. {told}")
    passed_over = word if asked else f"comes after {chosen} on {platform.kind}"
    for name in MATRIX.keys() - rejected.keys():
        rejected[name] = reasons(name, import_it=False) or [passed_over]
    layer = f"{num_heads} heads of {head_size} in {dtype}, pages of {block_size}, on {platform}"
    return Choice(chosen, f"{word}, which runs {layer}" if asked else f"the first on {platform.kind} that runs {layer}",
                  {name: rejected[name] for name in MATRIX if name != chosen}, source if asked else "platform")


def environment_backend() -> str | None:
    """VLLM_ATTENTION_BACKEND, if it is set. Read here and nowhere else."""
    return os.environ.get("VLLM_ATTENTION_BACKEND") or None


def expand(name: str) -> tuple[str, ...]:
    """The backends that a name stands for, best first."""
    name = ALIASES.get(name, name)
    if name == "FLASH_ATTN":
        return FLASH_ATTN
    if name not in MATRIX:
        raise UserError(f"unknown attention backend {name!r}; known: FLASH_ATTN, {', '.join([*MATRIX, *ALIASES])}")
    return (name,)


def missing(support: Support, platform: Platform, import_it: bool) -> list[str]:
    """Why its package can't be used: not on the list of an imagined machine, or not importable on this one."""
    if platform.installed is not None:
        return support.missing(platform.installed)
    if import_it:
        try:
            resolve(support.name).load()
        except ImportError as e:
            return [f"{e}: {support.install}"]
    return []


def resolve(name: str) -> type:
    """Diagram 1's `resolve_obj_by_qualname()`: from a backend's name to its class."""
    module, _, attribute = MATRIX[name].qualname.partition(":")
    return getattr(import_module(module), attribute)

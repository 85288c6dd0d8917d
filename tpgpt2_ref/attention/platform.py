"""What a machine is, to the selector: this one, or any machine a reader types in.

A `Platform` is a value. `this_machine()` fills one in by looking; a reader fills one in by hand and asks what
would be chosen on a GPU that they don't own.
"""
from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UserError

KINDS = ("cuda", "rocm", "cpu")


@dataclass(frozen=True)
class Platform:
    """One machine.

    kind          "cuda" (NVIDIA), "rocm" (AMD) or "cpu"
    capability    compute capability of an NVIDIA GPU: (9, 0) is Hopper, the diagrams' SM 90
    cuda_version  of CUDA, e.g. (12, 4)
    installed     names of `matrix.PACKAGES`; None is this machine: what counts is whether the import succeeds
    """

    kind: str
    capability: tuple[int, int] | None = None
    cuda_version: tuple[int, int] | None = None
    installed: frozenset[str] | None = frozenset()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"unknown platform {self.kind!r}; known: {', '.join(KINDS)}")
        if self.kind == "cuda" and not (self.capability and self.cuda_version):
            raise UserError("a cuda platform needs a compute capability (9.0 is Hopper) and a CUDA version (12.4)")
        if self.kind != "cuda" and (self.capability or self.cuda_version):
            raise UserError(f"compute capability and CUDA version belong to cuda, not to {self.kind}")

    @property
    def default_dtype(self) -> str:
        """What a model computes in if nobody says: Triton has no bfloat16 below SM 8.0."""
        if self.kind == "cpu":
            return "float32"
        return "float16" if self.kind == "cuda" and self.capability < (8, 0) else "bfloat16"

    def __str__(self) -> str:
        return f"cuda SM {dotted(self.capability)}, CUDA {dotted(self.cuda_version)}" if self.capability else self.kind


def this_machine(device: str = "auto") -> Platform:
    """The machine this process runs on; device "cpu" leaves its GPUs out of it."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return Platform("cpu", installed=None)
    if torch.version.hip:
        return Platform("rocm", installed=None)
    return Platform("cuda", torch.cuda.get_device_capability(), version(torch.version.cuda), installed=None)


def version(text: str) -> tuple[int, int]:
    """ "12.4" and "12.4.1" -> (12, 4), "9" -> (9, 0)."""
    found = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,3}))?(?:\.[0-9]{1,3})?", text)
    if not found:
        raise UserError(f"{text!r} is no version: write it as 9.0 or 12.4")
    return int(found[1]), int(found[2] or 0)


def dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"

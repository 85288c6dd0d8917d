"""A kernel on the CPU, step for step: its CUDA C++ source through a C++ compiler and `source/emulate.h`.

Threads, clusters, copies under way and 16-bit products are those of the source; what a GPU leaves open (who goes next,
when bytes arrive) is chance, from a seed. What would be a race or a hang on a GPU is an error with a message here.
"""
from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Mapping, Sequence

from .cache import SOURCE, as_options, headers, kept, source_file

OPTIONS = ("-std=c++17", "-Og", "-shared", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w", "-DEMULATE")


def _compiler() -> str | None:
    """$CXX, or the first of g++ and clang++ that there is."""
    return next(filter(None, map(shutil.which, filter(None, [os.environ.get("CXX"), "g++", "clang++"]))), None)


def why_no_emulator() -> str | None:
    """Why kernels can't be emulated here; None if they can."""
    return None if _compiler() else "no C++ compiler here: install g++ or clang++, or name one in CXX"


class Late(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_void_p), ("bytes", ctypes.c_uint64)]


class Emulated:
    """A kernel to launch on CPU memory, as rank `rank`'s."""

    def __init__(self, name: str, library: ctypes.CDLL, rank: int = 0):
        self.name, self.library, self.rank, self._run = name, library, rank, library.run
        self._run.argtypes = (ctypes.c_char_p, *[ctypes.c_uint32] * 4, ctypes.c_void_p, *[ctypes.c_uint64] * 2,
                              ctypes.POINTER(Late), *[ctypes.c_uint32] * 2)
        self._run.restype = ctypes.c_char_p

    def constant(self, name: str) -> int:
        """An u32 that the source declares as `extern "C" __device__`."""
        return self.read(name, ctypes.c_uint32).value

    def read(self, name: str, kind: type):
        """A copy of a variable, of ctypes' type `kind`, that the source declares as `extern "C" __device__`."""
        return kind.from_buffer_copy(kind.in_dll(self.library, name))

    def launch(self, grid: int, cluster: int, threads: int, shared: int, params: ctypes.Structure, pdl: bool = False,
               seed: int = 0, late: Sequence = ()) -> None:
        """Runs to the end. `shared` in bytes. Raises RuntimeError: what the kernel did wrong, and with which seed.

        late  contiguous tensors that the kernels before this one write: NaN to whoever reads them too early
        """
        spans = (Late * len(late))(*((tensor.data_ptr(), tensor.nbytes) for tensor in late))
        error = self._run(self.name.encode(), grid, cluster, threads, shared, ctypes.byref(params),
                          ctypes.sizeof(params), seed, spans, len(late), self.rank)
        if error:
            raise RuntimeError(f"{self.name}, seed {seed}: {error.decode()}")


def emulated(source: str | Path, defines: Mapping[str, object] | None = None, kernel: str | None = None) -> Emulated:
    """The kernel of `source/NAME.cu`, or of a path, whose name is the file's if nothing else is said.

    defines  macros: {"D": 768}; True defines as 1, False and None not at all. Ranks whose defines differ in RANK
             alone share what is compiled: there it is a variable
    Raises RuntimeError with the compiler's message.
    """
    file, defines = source_file(source), dict(defines or {})
    rank = defines.get("RANK", 0)
    if "RANK" in defines:
        defines["RANK"] = "emulated::machine().rank"
    return Emulated(kernel or file.stem, _library(file, file.read_text(), tuple(as_options(defines))), rank)


@lru_cache(maxsize=64)
def _library(file: Path, text: str, options: tuple[str, ...]) -> ctypes.CDLL:
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError(why_no_emulator())

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernel.so"

        def build() -> bytes:
            done = subprocess.run([compiler, *OPTIONS, *options, f"-I{SOURCE}", "-x", "c++", str(file), "-o", str(out)],
                                  capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{file.name} does not compile:\n{done.stderr}")
            return out.read_bytes()

        version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
        out.write_bytes(kept(file.stem, [text, headers(), version, OPTIONS, options], build))
        return ctypes.CDLL(str(out))  # stays loaded without its file

"""CUDA C++ compiled while the program runs, by the NVRTC that comes with torch: no compiler on the reader's machine.

    start(source, defines)  ──► a thread compiles, unless the cache has it    meanwhile: weights load
    compiled(source, defines, device)  ──► waits for it, loads it on the device
"""
from __future__ import annotations

import ctypes
from concurrent.futures import Future
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache, lru_cache
from pathlib import Path
from threading import Thread
from typing import Mapping

import torch

from .cache import as_options, headers, kept, source_file
from .driver import Kernel

ARCHITECTURE = "sm_90a"  # Hopper: what `chip.cuh` names, it has
OPTIONS = (f"--gpu-architecture={ARCHITECTURE}", "--std=c++17", "-default-device")


def why_not(device: torch.device) -> str | None:
    """Why kernels can't be compiled for a device and run there; None if they can."""
    if device.type != "cuda":
        return f"{device.type} is no GPU of NVIDIA's"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major != 9:
        return f"the cluster kernels are for GPUs of compute capability 9.0 (Hopper), this one has {major}.{minor}"
    try:
        _nvrtc()
    except OSError as e:
        return f"no NVRTC, the compiler that comes with torch's CUDA packages: {e}"
    return None


def compiled(source: str | Path, defines: Mapping[str, object] | None, device: torch.device,
             kernel: str | None = None) -> Kernel:
    """The kernel of `source/NAME.cu`, or of a path, whose name is the file's if nothing else is said, on a device.

    defines  macros: {"D": 768}; True defines as 1, False and None not at all
    Raises RuntimeError with the compiler's message or CUDA's error, OSError without NVRTC.
    """
    file = source_file(source)
    index = torch.cuda.current_device() if device.index is None else device.index
    return _loaded(kernel or file.stem, _compiling(*_ingredients(file, defines)).result(), index)


def start(source: str | Path, defines: Mapping[str, object] | None = None) -> None:
    """Compile in the background. What goes wrong is told by `compiled`."""
    _compiling(*_ingredients(source_file(source), defines))


def _ingredients(file: Path, defines: Mapping[str, object] | None):
    return file.name, file.read_text(), tuple(headers().items()), (*OPTIONS, *as_options(defines or {}))


@lru_cache(maxsize=64)
def _loaded(kernel: str, cubin: bytes, index: int) -> Kernel:
    return Kernel(kernel, cubin, torch.device("cuda", index))


@lru_cache(maxsize=64)
def _compiling(name: str, text: str, heads: tuple[tuple[str, str], ...], options: tuple[str, ...]) -> Future:
    done = Future()

    def work():
        try:
            done.set_result(cubin(name, text, dict(heads), options))
        except BaseException as e:  # whoever asks for the result gets it
            done.set_exception(e)

    Thread(target=work, daemon=True).start()
    return done


def cubin(name: str, text: str, heads: Mapping[str, str], options: tuple[str, ...]) -> bytes:
    """Machine code of a source text, from the cache or the compiler.

    heads  {name: text} of what it includes
    Raises RuntimeError with the compiler's message, OSError without NVRTC.
    """
    major, minor = c_int(), c_int()
    _call("nvrtcVersion", byref(major), byref(minor))
    return kept(Path(name).stem, [text, heads, options, f"NVRTC {major.value}.{minor.value}"],
                lambda: _compile(name, text, heads, options))


def _compile(name: str, text: str, heads: Mapping[str, str], options: tuple[str, ...]) -> bytes:
    def strings(values):
        return (c_char_p * len(values))(*(value.encode() for value in values))

    program = c_void_p()
    _call("nvrtcCreateProgram", byref(program), text.encode(), name.encode(), len(heads), strings(heads.values()),
          strings(heads.keys()))
    try:
        if _nvrtc().nvrtcCompileProgram(program, len(options), strings(options)):
            log = _read("ProgramLog", program).rstrip(b"\0").decode()
            raise RuntimeError(f"{name} does not compile:\n{log}")
        return _read("CUBIN", program)
    finally:
        _call("nvrtcDestroyProgram", byref(program))


def _read(what: str, program: c_void_p) -> bytes:
    size = c_size_t()
    _call(f"nvrtcGet{what}Size", program, byref(size))
    content = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, content)
    return content.raw


def _call(name: str, *args) -> None:
    library = _nvrtc()
    status = getattr(library, name)(*args)
    if status:
        library.nvrtcGetErrorString.restype = c_char_p
        raise RuntimeError(f"{name}: {library.nvrtcGetErrorString(status).decode()}")


@cache
def _nvrtc() -> ctypes.CDLL:
    """NVRTC of torch's CUDA: from the packages beside torch, or wherever the loader finds it. Raises OSError."""
    name = f"libnvrtc.so.{(torch.version.cuda or '13').split('.')[0]}"
    beside = Path(torch.__file__).parent
    for file in [*beside.parent.glob(f"nvidia/*/lib/{name}"), *beside.glob(f"lib/{name}")]:
        for builtins in file.parent.glob("libnvrtc-builtins.so.*"):  # NVRTC asks for them by name alone
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(file))
    return ctypes.CDLL(name)

"""The CUDA driver through ctypes: a compiled kernel as a function to launch on torch's stream, in clusters, with PDL.

Structures as in cuda.h of CUDA 12 and 13. A launch can be captured in a CUDA graph like any of torch's own.
"""
from __future__ import annotations

import ctypes
from contextlib import contextmanager
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from functools import cache, cached_property

import torch

SHARED_SIZE, LOCAL_SIZE, REGISTERS = 8, 3, 4  # CU_FUNC_ATTRIBUTE_...: MAX_DYNAMIC_SHARED_SIZE_BYTES and so on
WIDE_CLUSTERS = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: above 8 blocks
CLUSTER, EARLY_START = 4, 6  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, ..._PROGRAMMATIC_STREAM_SERIALIZATION


class LaunchAttribute(ctypes.Structure):
    _fields_ = [("id", c_int), ("pad", c_char * 4), ("value", c_uint32 * 16)]


class LaunchConfig(ctypes.Structure):
    _fields_ = [("grid", c_uint32 * 3), ("block", c_uint32 * 3), ("shared", c_uint32), ("stream", c_void_p),
                ("attributes", ctypes.POINTER(LaunchAttribute)), ("count", c_uint32)]


def launch_config(grid: int, cluster: int, threads: int, shared: int, stream: int | None, pdl: bool) -> LaunchConfig:
    """One launch; `shared` in bytes. With `pdl` it may start while the kernel before it on the stream still runs."""
    attributes = [LaunchAttribute(CLUSTER, b"", (cluster, 1, 1))] + [LaunchAttribute(EARLY_START, b"", (1,))] * pdl
    return LaunchConfig((grid, 1, 1), (threads, 1, 1), shared, stream,
                        (LaunchAttribute * len(attributes))(*attributes), len(attributes))


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def call(name: str, *args) -> None:
    """Calls the driver. Raises RuntimeError with the error's name and text."""
    status = getattr(_driver(), name)(*args)
    if status:
        error, text = c_char_p(), c_char_p()
        _driver().cuGetErrorName(status, byref(error))
        _driver().cuGetErrorString(status, byref(text))
        raise RuntimeError(f"{name}: {(error.value or b'error %d' % status).decode()} ({(text.value or b'').decode()})")


class Kernel:
    """A kernel of a cubin, loaded on a device."""

    def __init__(self, name: str, cubin: bytes, device: torch.device):
        torch.cuda.init()
        self.name, self.device, self._allowed = name, device, 0
        number, self._context, self._module, self._function = c_int(), c_void_p(), c_void_p(), c_void_p()
        call("cuDeviceGet", byref(number), device.index)
        call("cuDevicePrimaryCtxRetain", byref(self._context), number)  # torch's
        with self._current():
            call("cuModuleLoadData", byref(self._module), cubin)
            call("cuModuleGetFunction", byref(self._function), self._module, name.encode())
            call("cuFuncSetAttribute", self._function, WIDE_CLUSTERS, 1)

    @contextmanager
    def _current(self):
        """The device's context on this thread, which may not have used it yet."""
        call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def launch(self, grid: int, cluster: int, threads: int, shared: int, params: ctypes.Structure,
               pdl: bool = False) -> None:
        """Enqueue it on torch's current stream; `shared` in bytes. Raises RuntimeError with CUDA's error."""
        if (given := ctypes.sizeof(params)) != self.params_bytes:
            raise RuntimeError(f"{self.name} takes {self.params_bytes} bytes of parameters, not {given}")
        stream = torch.cuda.current_stream(self.device).cuda_stream
        config = launch_config(grid, cluster, threads, shared, stream, pdl)
        arguments = (c_void_p * 1)(ctypes.addressof(params))  # read before the call returns
        with self._current():
            self._allow(shared)
            call("cuLaunchKernelEx", byref(config), self._function, arguments, None)

    def max_active_clusters(self, grid: int, cluster: int, threads: int, shared: int) -> int:
        """How many clusters of such a launch the device holds at once."""
        found = c_int()
        with self._current():
            self._allow(shared)
            config = launch_config(grid, cluster, threads, shared, None, pdl=False)
            call("cuOccupancyMaxActiveClusters", byref(found), self._function, byref(config))
        return found.value

    def constant(self, name: str) -> int:
        """An u32 that the source declares as `extern "C" __device__`."""
        return self.read(name, c_uint32).value

    def read(self, name: str, kind: type):
        """A copy of a variable, of ctypes' type `kind`, that the source declares as `extern "C" __device__`."""
        place, size, value = c_void_p(), c_size_t(), kind()
        with self._current():
            call("cuModuleGetGlobal_v2", byref(place), byref(size), self._module, name.encode())
            if size.value != ctypes.sizeof(value):
                raise RuntimeError(f"{self.name}: {name} has {size.value} bytes, not {ctypes.sizeof(value)}")
            call("cuMemcpyDtoH_v2", byref(value), place, size)
        return value

    @property
    def registers(self) -> int:
        """Of a thread."""
        return self._attribute(REGISTERS)

    @property
    def local_bytes(self) -> int:
        """Of a thread: registers that did not fit, and arrays with an index that is not known."""
        return self._attribute(LOCAL_SIZE)

    def _attribute(self, which: int) -> int:
        value = c_int()
        call("cuFuncGetAttribute", byref(value), which, self._function)
        return value.value

    def _allow(self, shared: int) -> None:
        if shared > self._allowed:  # without asking, 48 KB are the most
            call("cuFuncSetAttribute", self._function, SHARED_SIZE, shared)
            self._allowed = shared

    @cached_property
    def params_bytes(self) -> int:
        """Of the structure that the kernel takes."""
        offset, size = c_size_t(), c_size_t()
        call("cuFuncGetParamInfo", self._function, c_size_t(0), byref(offset), byref(size))
        return size.value

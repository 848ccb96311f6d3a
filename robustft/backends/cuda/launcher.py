"""Compiles a CUDA source for the card that is there, and launches its kernels.

Sources are csrc/cuda/*.cu, installed as robustft/csrc/cuda. CuPy's RawModule compiles one kernel at
its first launch (NVRTC; kept on disk by architecture, compiler and source), for the device of the
tensors. A launch goes to torch's current stream, allocates nothing and waits for nothing, so that
all but the first one can be captured in a CUDA graph.

For tests: ROBUSTFT_CUDA_EMULATOR names a library of the same sources compiled for the CPU
(tests/cuda/emulator/build.py). It then runs every launch, on CPU tensors.
"""

from __future__ import annotations

import ctypes
import functools
import re
import tempfile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustft.backends.card import obstacle as obstacle
from robustft.backends.card import sources
from robustft.backends.simulation import emulator

SOURCES = sources()
OPTIONS = ("--std=c++17",)
_HOPPER = "sm_90a"  # sm_90 with wgmma, which CuPy's RawModule does not ask for

Argument = Tensor | int | float | None


def launch(
    source: str,
    kernel: str,
    grid: tuple[int, ...],
    block: int,
    args: tuple[Argument, ...],
    shared: int = 0,
    cluster: int = 1,
) -> None:
    """Launch `kernel` of csrc/cuda/<source>.cu with `block` threads a block.

    kernel: as the source's INSTANTIATE names it, "rows<float, true>".
    args: a tensor is its address, None a null pointer, an int a 64-bit integer (any integer
    parameter and bool take it), a float a float32. All tensors are on one device.
    shared: bytes of dynamic shared memory.
    cluster: blocks along x that run together. A card has it from the kernel's own attribute, and
    takes grids of whole clusters alone.
    """
    path = emulator()
    if path is not None:
        _Emulator.of(path).launch(source, kernel, grid, block, args, shared, cluster)
        return
    device = next(x.device.index for x in args if isinstance(x, Tensor))
    if device != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(source, kernel, grid, block, args, shared, cluster)
        return
    stream = _Stream(torch._C._cuda_getCurrentRawStream(device))
    _function(source, kernel, device)(
        grid, (block,), [_scalar(x) for x in args], shared_mem=shared, stream=stream
    )


class _Stream(NamedTuple):
    """What a CuPy function asks of a stream."""

    ptr: int


def _scalar(x: Argument) -> Any:
    """Python integers are passed as int64, which addresses fit; floats need their type."""
    if isinstance(x, Tensor):
        return x.data_ptr()
    if isinstance(x, float):
        return np.float32(x)
    return 0 if x is None else int(x)


@functools.cache
def _function(source: str, kernel: str, device: int) -> Any:
    """The compiled kernel, allowed as much dynamic shared memory as the device has."""
    import cupy

    with cupy.cuda.Device(device) as card:
        if needs_sm_90a(source) and card.compute_capability == "90":
            function = _for_sm_90a(source, kernel)
        else:
            module = cupy.RawModule(code=text(source), options=OPTIONS, name_expressions=(kernel,))
            function = module.get_function(kernel)
        largest = card.attributes["MaxSharedMemoryPerBlockOptin"]
        static = function.shared_size_bytes
        # From sm_90 on 1 KB of a static size may be the card's own, which `largest` leaves out.
        try:
            function.max_dynamic_shared_size_bytes = largest - max(static - 1024, 0)
        except cupy.cuda.driver.CUDADriverError:
            function.max_dynamic_shared_size_bytes = largest - static
        return function.kernel


def _for_sm_90a(source: str, kernel: str) -> Any:
    """The same by NVRTC alone, compiled once a process."""
    import cupy
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(text(source), f"{source}.cu", (), ())
    try:
        nvrtc.addNameExpression(program, kernel)
        try:
            nvrtc.compileProgram(program, compiler_options(_HOPPER))
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise RuntimeError(f"{source}.cu does not compile for {_HOPPER}:\n{log}") from error
        name, cubin = nvrtc.getLoweredName(program, kernel), nvrtc.getCUBIN(program)
    finally:
        nvrtc.destroyProgram(program)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return cupy.RawModule(path=file.name).get_function(name)  # loads it


def needs_sm_90a(source: str) -> bool:
    return '#include "hopper.cuh"' in (SOURCES / f"{source}.cu").read_text("utf-8")


def compiler_options(architecture: str) -> tuple[str, ...]:
    """What NVRTC gets: ours, and what CuPy adds (-ftz: float32 subnormals are zero)."""
    mode = "--device-as-default-execution-space"
    return (*OPTIONS, "-ftz=true", f"-arch={architecture}", mode)


@functools.cache
def text(source: str) -> str:
    """The source with its own headers in place: CuPy's cache does not look into includes."""
    return _inlined(f"{source}.cu", set())


def _inlined(name: str, seen: set[str]) -> str:
    if name in seen:
        return ""
    seen.add(name)
    content = (SOURCES / name).read_text("utf-8")
    return re.sub(
        r'^#include "(.+)"$', lambda found: _inlined(found[1], seen), content, flags=re.MULTILINE
    )


class _Emulator:
    """The library of tests/cuda/emulator. PyDLL: its messages are read before another launch."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.PyDLL(path)
        self._launch = self._library.emulator_launch
        self._launch.restype = ctypes.c_char_p

    @staticmethod
    @functools.cache
    def of(path: str) -> _Emulator:
        return _Emulator(path)

    def order(self, seed: int) -> None:
        """Threads and blocks in order (0), reversed (1), or shuffled by another number."""
        self._library.emulator_order(ctypes.c_ulonglong(seed))

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, ...],
        block: int,
        args: tuple[Argument, ...],
        shared: int = 0,
        cluster: int = 1,
    ) -> None:
        values = [
            ctypes.c_float(x) if isinstance(x, float) else ctypes.c_int64(_scalar(x)) for x in args
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        error = self._launch(
            source.encode(),
            kernel.encode(),
            (ctypes.c_uint * 3)(*grid, *(1, 1)[: 3 - len(grid)]),
            (ctypes.c_uint * 3)(block, 1, 1),
            ctypes.c_uint(cluster),
            ctypes.c_uint(shared),
            pointers,
        )
        if error is not None:
            raise RuntimeError(error.decode())

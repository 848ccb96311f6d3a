"""What the loader says where it cannot run, the source it compiles, and what a launch passes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robustft import backends
from robustft.backends.cuda import launcher

pytestmark = pytest.mark.skipif(backends.emulating(), reason="of the loader without the emulator")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A CuPy and a device that seem to be there; `nvrtc.getVersion` may be changed."""
    nvrtc = SimpleNamespace(getVersion=lambda: (13, 0))
    cupy, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    cupy.cuda, cuda.nvrtc = cuda, nvrtc
    cupy.__spec__ = SimpleNamespace(name="cupy")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return nvrtc


def test_each_obstacle_is_named(card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launcher.obstacle() is None

    def none_found() -> None:
        raise RuntimeError("libnvrtc.so.13: cannot open shared object file")

    monkeypatch.setattr(card, "getVersion", none_found)
    assert "finds no NVRTC (libnvrtc.so.13: cannot open" in launcher.obstacle()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert launcher.obstacle() == "torch finds no CUDA device"
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert launcher.obstacle() == "cupy is not installed: pip install 'robustft[cuda]'"


def test_an_emulator_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTFT_CUDA_EMULATOR", "/nowhere/emulator.so")
    assert launcher.obstacle() == "ROBUSTFT_CUDA_EMULATOR: /nowhere/emulator.so is no file"


def test_a_source_is_compiled_with_its_headers_in_place() -> None:
    """CuPy's cache knows a source by its text alone."""
    for path in launcher.SOURCES.glob("*.cu"):
        text = launcher.text(path.stem)
        assert '#include "' not in text
        assert text.count("#define ROBUSTFT_PTX\n") == 1
        assert path.read_text("utf-8").splitlines()[-1] in text


def test_what_a_launch_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiled(source: str, kernel: str, device: int | None) -> object:
        def function(*args: object, **options: object) -> None:
            calls.append((source, kernel, device, args, options))

        return function

    x = torch.empty(3)  # its device's index is None
    monkeypatch.setattr(launcher, "_function", compiled)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: x.device.index)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0x5EED, raising=False)
    launcher.launch("dive", "rows<float, 2>", (7, 3), 256, (x, 2**40, 0.1, True, None), shared=64)
    ((source, kernel, device, (grid, block, args), options),) = calls
    assert (source, kernel, device, grid, block) == ("dive", "rows<float, 2>", None, (7, 3), (256,))
    assert args == [x.data_ptr(), 2**40, np.float32(0.1), 1, 0]
    assert [type(a) for a in args] == [int, int, np.float32, int, int]
    assert (options["shared_mem"], options["stream"].ptr) == (64, 0x5EED)


class Kernel:
    """Of a card that gives a block so many bytes of dynamic shared memory, and raises beyond."""

    kernel = "the function"

    def __init__(self, static: int, dynamic: int) -> None:
        self.shared_size_bytes, self._dynamic, self.allowed = static, dynamic, 0

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self.allowed

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if size > self._dynamic:
            raise ValueError(size)
        self.allowed = size


@pytest.mark.parametrize(
    ("source", "capability", "static", "dynamic"),
    [
        ("dive_forward", "80", 3000, 166912 - 3000),  # all of a static size is the kernel's
        ("dive_forward", "80", 0, 166912),
        ("dive_forward", "90", 3000 + 1024, 232448 - 3000),  # 1 KB of it is the card's own
        ("nearest_wgmma", "90", 1024, 232448),
        ("nearest_wgmma", "100", 1024, 232448),
    ],
)
def test_a_kernel_may_take_all_shared_memory_of_the_card(
    card: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    capability: str,
    static: int,
    dynamic: int,
) -> None:
    kernel, compiled = Kernel(static, dynamic), []

    class Device:
        compute_capability = capability

        def __init__(self, index: int) -> None:
            assert index == 3
            largest = 166912 if capability == "80" else 232448
            self.attributes = {"MaxSharedMemoryPerBlockOptin": largest}

        def __enter__(self) -> Device:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    class RawModule:
        def __init__(self, code: str, options: tuple[str, ...], name_expressions: Any) -> None:
            compiled.append((code, options, name_expressions))

        def get_function(self, name: str) -> Kernel:
            assert (name,) == compiled[-1][-1]
            return kernel

    cupy: Any = sys.modules["cupy"]
    cupy.RawModule, cupy.cuda.Device = RawModule, Device
    cupy.cuda.driver = SimpleNamespace(CUDADriverError=ValueError)
    monkeypatch.setattr(launcher, "_for_sm_90a", lambda *asked: compiled.append(asked) or kernel)
    assert launcher._function.__wrapped__(source, "rows<float>", 3) == "the function"
    assert kernel.allowed == dynamic
    if (source, capability) == ("nearest_wgmma", "90"):
        assert compiled == [(source, "rows<float>")]
    else:
        assert compiled == [(launcher.text(source), ("--std=c++17",), ("rows<float>",))]


def test_a_kernel_for_hopper_as_cupy_s_nvrtc_compiles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = pytest.importorskip("cupy")
    from benchmarks.card import cuda_cubins

    loaded = []

    class RawModule:
        def __init__(self, path: str) -> None:
            loaded.append(Path(path).read_bytes())

        def get_function(self, name: str) -> str:
            return name

    monkeypatch.setattr(cupy, "RawModule", RawModule)
    kernel = cuda_cubins.kernels("nearest_wgmma")[0]
    name = launcher._for_sm_90a("nearest_wgmma", kernel)
    _, names = cuda_cubins.cubin("nearest_wgmma", (kernel,), "sm_90a")
    assert names == {name: kernel}
    assert loaded[0].startswith(b"\x7fELF")
    assert name.encode() in loaded[0]
    with pytest.raises(RuntimeError, match=r"nearest_wgmma\.cu does not compile for sm_90a:\n.+"):
        launcher._for_sm_90a("nearest_wgmma", "no_such_kernel<3>")

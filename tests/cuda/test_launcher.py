"""What the loader says where it cannot run, the source it compiles, and what a launch passes."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

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

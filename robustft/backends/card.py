"""What can be said of a CUDA card, and of this torch, without importing torch."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from robustft.backends.simulation import emulator

#: Backends whose kernels run on a card. They have to prove themselves before "auto" takes them.
KERNELS = ("triton", "cuda")


def sources() -> Path:
    """The folder of the CUDA sources: in a wheel within the package, in a checkout beside it."""
    parents = Path(__file__).parents[1:3]
    return next(folder for parent in parents if (folder := parent / "csrc" / "cuda").is_dir())


def torch_version() -> str | None:
    """torch's own version, such as "2.14.1+cu130", or None where torch is not installed."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    values: dict[str, Any] = {}
    exec((Path(found.origin).parent / "version.py").read_text(encoding="utf-8"), values)
    return str(values["__version__"])


def present() -> bool:
    """Whether torch finds a CUDA device. Where no driver is, it need not be asked."""
    if "torch" not in sys.modules:
        version = torch_version()
        if version is None or ("+rocm" not in version and not _driver()):
            return False
    import torch

    return torch.cuda.is_available()


def capabilities() -> list[tuple[int, int]]:
    """Of all cards that torch finds."""
    import torch

    return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]


def _driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def obstacle() -> str | None:
    """Why CUDA sources cannot be compiled or run here, or None."""
    path = emulator()
    if path is not None:
        return None if os.path.isfile(path) else f"ROBUSTFT_CUDA_EMULATOR: {path} is no file"
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed: pip install 'robustft[cuda]'"
    if not present():
        return "torch finds no CUDA device"
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # CuPy raises what its loader found: ImportError, RuntimeError, …
        return f"cupy does not load, or finds no NVRTC ({error}): pip install nvidia-cuda-nvrtc"
    return None

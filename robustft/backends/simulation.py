"""Whether a card's kernels run on the CPU here, on CPU tensors: for tests, slowly."""

from __future__ import annotations

import os


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def emulator() -> str | None:
    """The library that runs CUDA kernels (ROBUSTFT_CUDA_EMULATOR, tests/cuda/emulator), or None."""
    return os.environ.get("ROBUSTFT_CUDA_EMULATOR") or None


def emulating() -> bool:
    """Whether CUDA kernels run in an emulator."""
    return emulator() is not None

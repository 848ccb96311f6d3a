"""What the machine can do: memory streams and products, timed beside the ops."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks.harness import Probe, name_of

# Far beyond the caches of most machines; a virtual machine's share of a larger one is what it is.
STREAM = 512 << 20  # bytes read, or moved by the copy
STREAM_CUDA = 4 << 30
QUICK = 32 << 20  # of a run that only shows that everything works
CHUNK = 1 << 24  # entries of a product's result: 64 MB in float32
CHUNK_CUDA = 1 << 28
SQUARE = {torch.float32: 4096}  # rows of the product that shows a GPU's rate; else 8,192


def streams(device: str, size: int = STREAM) -> dict[str, Probe]:
    """ "read": the sum of a float32 tensor; "copy": half the size to a tensor of its own.

    The first is the floor: reading on a CPU, the copy on a GPU.
    """
    x, y = _stream_tensors(device, STREAM_CUDA if device == "cuda" and size == STREAM else size)
    source = x[: len(y)]
    found = {
        "read": Probe(x.sum, 4 * len(x)),
        "copy": Probe(lambda: y.copy_(source), 2 * 4 * len(y)),
    }
    return found if device == "cpu" else dict(reversed(found.items()))


@functools.cache
def _stream_tensors(device: str, size: int) -> tuple[Tensor, Tensor]:
    return torch.ones(size // 4, device=device), torch.ones(size // 8, device=device)


def product(x: Tensor, y: Tensor, dtype: torch.dtype, amount: float | None = None) -> Probe:
    """torch.mm(x, yᵀ, out=…) in `dtype`, in columns of at most CHUNK entries each.

    `amount`: the operations of a call, if not 2·|x|·|y|·D.
    """
    x, y = x.detach().to(dtype), y.detach().to(dtype)
    step = max(1, min(len(y), (CHUNK if x.device.type == "cpu" else CHUNK_CUDA) // len(x)))
    out = torch.empty(len(x) * step, dtype=dtype, device=x.device)

    def call() -> None:
        for start in range(0, len(y), step):
            part = y[start : start + step]
            torch.mm(x, part.T, out=out[: len(x) * len(part)].view(len(x), len(part)))

    return Probe(call, amount or 2.0 * len(x) * len(y) * x.shape[1])


def products(x: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, Probe]:
    """The product in float32, and in `dtype` too where that is another one.

    On a GPU the floor is the rate of a large square product in `dtype`, beside that of the shape.
    """
    if x.device.type == "cuda":
        return {
            f"mm {SQUARE.get(dtype, 8192)}³ {name_of(dtype)}": square("cuda", dtype),
            f"torch.mm {name_of(dtype)}": product(x, y, dtype),
        }
    kinds = [torch.float32, dtype]
    return {f"torch.mm {name_of(kind)}": product(x, y, kind) for kind in dict.fromkeys(kinds)}


@functools.cache
def square(device: str, dtype: torch.dtype, rows: int | None = None) -> Probe:
    """The product of two random square matrices: zeros would take less power, and run faster."""
    rows = rows or SQUARE.get(dtype, 8192)
    x, y = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(x)
    return Probe(lambda: torch.mm(x, y, out=out), 2.0 * rows**3)

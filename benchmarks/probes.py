"""What the machine can do: memory streams and products, timed beside the ops."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks.harness import Probe, name_of

# Far beyond the caches of most machines; a virtual machine's share of a larger one is what it is.
STREAM = 512 << 20  # bytes read, or moved by the copy
QUICK = 32 << 20  # of a run that only shows that everything works
CHUNK = 1 << 24  # entries of a product's result: 64 MB in float32


def streams(device: str, size: int = STREAM) -> dict[str, Probe]:
    """ "read": the sum of a float32 tensor; "copy": half the size to a tensor of its own."""
    x, y = _stream_tensors(device, size)
    source = x[: len(y)]
    return {
        "read": Probe(x.sum, 4 * len(x)),
        "copy": Probe(lambda: y.copy_(source), 2 * 4 * len(y)),
    }


@functools.cache
def _stream_tensors(device: str, size: int) -> tuple[Tensor, Tensor]:
    return torch.ones(size // 4, device=device), torch.ones(size // 8, device=device)


def product(x: Tensor, y: Tensor, dtype: torch.dtype, amount: float | None = None) -> Probe:
    """torch.mm(x, yᵀ, out=…) in `dtype`, in columns of at most CHUNK entries each.

    `amount`: the operations of a call, if not 2·|x|·|y|·D.
    """
    x, y = x.detach().to(dtype), y.detach().to(dtype)
    step = max(1, min(len(y), CHUNK // len(x)))
    out = torch.empty(len(x) * step, dtype=dtype, device=x.device)

    def call() -> None:
        for start in range(0, len(y), step):
            part = y[start : start + step]
            torch.mm(x, part.T, out=out[: len(x) * len(part)].view(len(x), len(part)))

    return Probe(call, amount or 2.0 * len(x) * len(y) * x.shape[1])


def products(x: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, Probe]:
    """The product in float32, and in `dtype` too where that is another one.

    On a GPU the floor is the product in the features' own dtype.
    """
    kinds = [dtype, torch.float32] if x.device.type == "cuda" else [torch.float32, dtype]
    return {f"torch.mm {name_of(kind)}": product(x, y, kind) for kind in dict.fromkeys(kinds)}

"""dive_loss forward and backward: 4 reads, then 4 reads and 2 writes of [B, D]."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import probes
from benchmarks.harness import Call, Case, compiled, name_of, robustft
from robustft.backends.reference import dive as reference
from robustft.ops import dive_loss

SHAPE = "BxD"
QUICK = [(128, 64)]
DEFAULT = [(512, 512), (4096, 512), (4096, 768), (16384, 512)]
FULL = [(512, 512), (512, 768), (4096, 512), (4096, 768), (16384, 512), (16384, 768)]


def cases(shapes: list[tuple[int, ...]], device: str, quick: bool) -> Iterator[Case]:
    for rows, dim in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            yield _case(rows, dim, dtype, device, quick)


def _case(rows: int, dim: int, dtype: torch.dtype, device: str, quick: bool) -> Case:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(rows, dim, generator=generator) for _ in range(2)]
    # A fine-tuned model's features: near the pre-trained ones.
    moved = [x + 0.1 * torch.randn(rows, dim, generator=generator) for x in start]
    mean = (1e-3 * torch.randn(dim, generator=generator)).to(device)
    f, f0, g, g0 = (x.to(device, dtype) for x in (moved[0], start[0], moved[1], start[1]))
    f.requires_grad_()
    g.requires_grad_()

    def step(loss: Callable[..., tuple[Tensor, ...]]) -> list[Tensor]:
        avl, pvl, new_mean = loss(f, f0, g, g0, mean)
        return [avl.detach(), pvl.detach(), new_mean, *torch.autograd.grad(avl + pvl, (f, g))]

    def truth() -> list[Tensor]:
        wide = [x.detach().double() for x in (f, f0, g, g0, mean)]
        wide[0].requires_grad_()
        wide[2].requires_grad_()
        avl, pvl, new_mean = reference.dive_loss(*wide)
        grads = torch.autograd.grad(avl + pvl, (wide[0], wide[2]))
        return [avl.detach(), pvl.detach(), new_mean, *grads]

    def ours(backend: str) -> Call:
        return lambda: step(lambda *x: dive_loss(*x, backend=backend))

    def compiled_step() -> Call:
        loss = compiled(_eager)
        return lambda: step(loss)

    return Case(
        op="dive",
        mode="forward+backward",
        shape=f"{rows}x{dim}",
        dtype=name_of(dtype),
        amount=10 * rows * dim * dtype.itemsize,
        unit="GB/s",
        probes=probes.streams(device, probes.QUICK if quick else probes.STREAM),
        providers={
            "torch eager": lambda: lambda: step(_eager),
            "torch.compile": compiled_step,
            **robustft("dive", device, dtype, ours),
        },
        truth=truth,
    )


def _eager(f: Tensor, f0: Tensor, g: Tensor, g0: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    return reference.dive_loss(f.float(), f0.float(), g.float(), g0.float(), mean)

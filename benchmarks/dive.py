"""dive_loss forward and backward: 4 reads, then 4 reads and 2 writes of [B, D]."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Batch:
    """Features of a fine-tuned model, f and g, and of the pre-trained one, [B, D]; a mean, [D]."""

    f: Tensor
    f0: Tensor
    g: Tensor
    g0: Tensor
    mean: Tensor

    @staticmethod
    def of(rows: int, dim: int, dtype: torch.dtype, device: str) -> Batch:
        """The fine-tuned features lie near the pre-trained ones; they are to be differentiated."""
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator)

        start = [random(rows, dim) for _ in range(2)]
        moved = [x + 0.1 * random(rows, dim) for x in start]
        mean = 1e-3 * random(dim)
        f, f0, g, g0 = (x.to(dtype) for x in (moved[0], start[0], moved[1], start[1]))
        return Batch(f.requires_grad_(), f0, g.requires_grad_(), g0, mean)

    def step(self, loss: Callable[..., tuple[Tensor, ...]], factor: float = 1.0) -> list[Tensor]:
        """Both losses, the new mean, and the gradients of factor·(avl + pvl) to f and g."""
        avl, pvl, new_mean = loss(self.f, self.f0, self.g, self.g0, self.mean)
        grads = torch.autograd.grad(factor * (avl + pvl), (self.f, self.g))
        return [avl.detach(), pvl.detach(), new_mean, *grads]

    def truth(self, factor: float = 1.0) -> list[Tensor]:
        """The same step of the definition, in float64."""
        f, f0, g, g0, mean = (
            x.detach().double() for x in (self.f, self.f0, self.g, self.g0, self.mean)
        )
        wide = Batch(f.requires_grad_(), f0, g.requires_grad_(), g0, mean)
        return wide.step(reference.dive_loss, factor)


def ours(batch: Batch, backend: str, factor: float = 1.0) -> Callable[[], list[Tensor]]:
    """A step of dive_loss with a backend."""
    return lambda: batch.step(functools.partial(dive_loss, backend=backend), factor)


def _case(rows: int, dim: int, dtype: torch.dtype, device: str, quick: bool) -> Case:
    batch = Batch.of(rows, dim, dtype, device)

    def compiled_step() -> Call:
        loss = compiled(_eager)
        return lambda: batch.step(loss)

    return Case(
        op="dive",
        mode="forward+backward",
        shape=f"{rows}x{dim}",
        dtype=name_of(dtype),
        amount=10 * rows * dim * dtype.itemsize,
        unit="GB/s",
        probes=probes.streams(device, probes.QUICK if quick else probes.STREAM),
        providers={
            "torch eager": lambda: lambda: batch.step(_eager),
            "torch.compile": compiled_step,
            **robustft("dive", device, dtype, functools.partial(ours, batch)),
        },
        truth=batch.truth,
    )


def _eager(f: Tensor, f0: Tensor, g: Tensor, g0: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    return reference.dive_loss(f.float(), f0.float(), g.float(), g0.float(), mean)

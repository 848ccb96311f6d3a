"""dive_loss forward and backward: 4 reads, then 4 reads and 2 writes of [B, D]."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.harness import Case
from robustft.ops import dive_loss
from robustft.reference import dive as reference


def cases(quick: bool) -> Iterator[Case]:
    shapes = [(512, 512)] if quick else [(512, 512), (4096, 768), (16384, 512)]
    for rows, dim in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            yield _case(rows, dim, dtype)


def _case(rows: int, dim: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(rows, dim, generator=generator) for _ in range(2)]
    # A fine-tuned model's features: near the pre-trained ones.
    moved = [x + 0.1 * torch.randn(rows, dim, generator=generator) for x in start]
    f, f0, g, g0 = (x.to(dtype) for x in (moved[0], start[0], moved[1], start[1]))
    f.requires_grad_()
    g.requires_grad_()
    mean = 1e-3 * torch.randn(dim, generator=generator)

    def step(loss, f: Tensor, g: Tensor, *others: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
        avl, pvl, new_mean = loss(f, others[0], g, others[1], others[2])
        grads = torch.autograd.grad(avl + pvl, (f, g))
        return [avl.detach(), pvl.detach(), new_mean.detach(), *grads]

    compiled = torch.compile(reference.dive_loss, dynamic=False)
    wide = [x.detach().double() for x in (f, g, f0, g0, mean)]
    wide[0].requires_grad_()
    wide[1].requires_grad_()

    def definition(
        f: Tensor, f0: Tensor, g: Tensor, g0: Tensor, mean: Tensor
    ) -> tuple[Tensor, ...]:
        return reference.dive_loss(*(x.float() for x in (f, f0, g, g0)), mean)

    providers = {
        "torch eager": lambda: step(definition, f, g, f0, g0, mean),
        "torch.compile": lambda: step(
            lambda *x: compiled(*(y.float() for y in x)), f, g, f0, g0, mean
        ),
        "robustft cpu": lambda: step(lambda *x: dive_loss(*x, backend="cpu"), f, g, f0, g0, mean),
    }
    return Case(
        op="dive_loss",
        mode="forward+backward",
        shape=f"{rows}x{dim}",
        dtype=str(dtype).removeprefix("torch."),
        bytes=10 * rows * dim * dtype.itemsize,
        providers=providers,
        truth=[x.detach() for x in step(reference.dive_loss, *wide)],
    )

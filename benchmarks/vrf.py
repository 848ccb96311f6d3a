"""vrf_mix: 2 reads and 1 write of [Q, K] forward, 3 reads and 2 writes more backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import probes
from benchmarks.harness import Call, Case, compiled, name_of, robustft
from robustft.ops import vrf_mix

SHAPE = "QxK"
QUICK = [(200, 100)]
DEFAULT = FULL = [(2000, 1000), (50_000, 1000)]
A, B = 1.5, 0.6  # of the mixture


def cases(shapes: list[tuple[int, ...]], device: str, quick: bool) -> Iterator[Case]:
    for rows, classes in shapes:
        for mode in ("forward", "forward+backward"):
            for dtype in (torch.float32, torch.bfloat16):
                yield _case(rows, classes, mode, dtype, device, quick)


@dataclass(frozen=True)
class Batch:
    """Logits of two models, [Q, K], and distances, [Q]; with `upstream` they are differentiated."""

    finetuned: Tensor
    zeroshot: Tensor
    distance: Tensor
    upstream: Tensor | None  # the gradient to the result, [Q, K]

    @staticmethod
    def of(rows: int, classes: int, dtype: torch.dtype, device: str, backward: bool) -> Batch:
        generator = torch.Generator(device).manual_seed(0)

        def random() -> Tensor:
            x = torch.randn(rows, classes, device=device, generator=generator)
            return (5 * x).to(dtype)

        logits = random(), random()
        distance = 2 * torch.rand(rows, device=device, generator=generator)
        upstream = random() if backward else None
        z, y, d = (x.requires_grad_(backward) for x in (*logits, distance))
        return Batch(z, y, d, upstream)

    def step(self, mix: Callable[..., Tensor]) -> list[Tensor]:
        """The mixture, and the gradients to both logits and the distance."""
        inputs = (self.finetuned, self.zeroshot, self.distance)
        mixed = mix(*inputs)
        if self.upstream is None:
            return [mixed]
        grads = torch.autograd.grad(mixed, inputs, self.upstream.to(mixed.dtype))
        return [mixed.detach(), *grads]

    def truth(self) -> list[Tensor]:
        inputs = (self.finetuned, self.zeroshot, self.distance)
        backward = self.upstream is not None
        z, y, d = (x.detach().double().requires_grad_(backward) for x in inputs)
        return Batch(z, y, d, self.upstream).step(_mix)


def ours(batch: Batch, backend: str, into: bool = False) -> Callable[[], list[Tensor]]:
    """A step of vrf_mix with a backend; into: with a result that is there before."""
    out = torch.zeros_like(batch.finetuned, requires_grad=False) if into else None

    def mix(finetuned: Tensor, zeroshot: Tensor, distance: Tensor) -> Tensor:
        return vrf_mix(finetuned, zeroshot, distance, A, B, out=out, backend=backend)

    return lambda: batch.step(mix)


def _case(rows: int, classes: int, mode: str, dtype: torch.dtype, device: str, quick: bool) -> Case:
    both = mode == "forward+backward"
    batch = Batch.of(rows, classes, dtype, device, both)

    def compiled_step() -> Call:
        mix = compiled(_eager)
        return lambda: batch.step(mix)

    ours_of = robustft("vrf", device, dtype, functools.partial(ours, batch))
    if not both:  # into memory that is there
        into = robustft("vrf", device, dtype, functools.partial(ours, batch, into=True))
        ours_of |= {f"{name}, out=": make for name, make in into.items() if "reference" not in name}

    return Case(
        op="vrf",
        mode=mode,
        shape=f"{rows}x{classes}",
        dtype=name_of(dtype),
        amount=(8 if both else 3) * rows * classes * dtype.itemsize,
        unit="GB/s",
        probes=probes.streams(device, probes.QUICK if quick else probes.STREAM),
        providers={
            "torch eager": lambda: lambda: batch.step(_eager),
            "torch.compile": compiled_step,
            **ours_of,
        },
        truth=batch.truth,
    )


def _eager(finetuned: Tensor, zeroshot: Tensor, distance: Tensor) -> Tensor:
    """In float32, and back in the logits' dtype, as vrf_mix does."""
    return _mix(finetuned.float(), zeroshot.float(), distance).to(finetuned.dtype)


def _mix(finetuned: Tensor, zeroshot: Tensor, distance: Tensor) -> Tensor:
    weight = torch.sigmoid(-(distance - A) / B)[:, None]
    return weight * finetuned.softmax(1) + (1 - weight) * zeroshot.softmax(1)

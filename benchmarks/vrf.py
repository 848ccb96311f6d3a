"""vrf_mix: 2 reads and 1 write of [Q, K] forward, 3 reads and 2 writes more backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import probes
from benchmarks.harness import Call, Case, compiled, name_of, robustft
from robustft.ops import vrf_mix

SHAPE = "QxK"
QUICK = [(200, 100)]
DEFAULT = FULL = [(2000, 1000), (50_000, 1000)]


def cases(shapes: list[tuple[int, ...]], device: str, quick: bool) -> Iterator[Case]:
    for rows, classes in shapes:
        for mode in ("forward", "forward+backward"):
            for dtype in (torch.float32, torch.bfloat16):
                yield _case(rows, classes, mode, dtype, device, quick)


def _case(rows: int, classes: int, mode: str, dtype: torch.dtype, device: str, quick: bool) -> Case:
    generator = torch.Generator().manual_seed(0)
    both = mode == "forward+backward"

    def random() -> Tensor:
        return (5 * torch.randn(rows, classes, generator=generator)).to(device, dtype)

    inputs = [random(), random(), 2 * torch.rand(rows, generator=generator).to(device)]
    upstream = random() if both else None
    if both:
        for x in inputs:
            x.requires_grad_()

    def step(mix: Callable[..., Tensor], inputs: list[Tensor] = inputs) -> list[Tensor]:
        mixed = mix(*inputs)
        if upstream is None:
            return [mixed]
        return [mixed.detach(), *torch.autograd.grad(mixed, inputs, upstream.to(mixed.dtype))]

    def truth() -> list[Tensor]:
        return step(_mix, [x.detach().double().requires_grad_(both) for x in inputs])

    def ours(backend: str) -> Call:
        return lambda: step(lambda *x: vrf_mix(*x, 1.5, 0.6, backend=backend))

    def compiled_step() -> Call:
        mix = compiled(_eager)
        return lambda: step(mix)

    return Case(
        op="vrf",
        mode=mode,
        shape=f"{rows}x{classes}",
        dtype=name_of(dtype),
        amount=(8 if both else 3) * rows * classes * dtype.itemsize,
        unit="GB/s",
        probes=probes.streams(device, probes.QUICK if quick else probes.STREAM),
        providers={
            "torch eager": lambda: lambda: step(_eager),
            "torch.compile": compiled_step,
            **robustft("vrf", device, dtype, ours),
        },
        truth=truth,
    )


def _eager(finetuned: Tensor, zeroshot: Tensor, distance: Tensor) -> Tensor:
    """In float32, and back in the logits' dtype, as vrf_mix does."""
    return _mix(finetuned.float(), zeroshot.float(), distance).to(finetuned.dtype)


def _mix(finetuned: Tensor, zeroshot: Tensor, distance: Tensor) -> Tensor:
    weight = torch.sigmoid(-(distance - 1.5) / 0.6)[:, None]
    return weight * finetuned.softmax(1) + (1 - weight) * zeroshot.softmax(1)

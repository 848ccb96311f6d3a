"""vrf_mix forward: 2 reads and 1 write of [Q, K]."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.harness import Case
from robustft.ops import vrf_mix


def cases(quick: bool) -> Iterator[Case]:
    shapes = [(2000, 1000)] if quick else [(2000, 1000), (50_000, 1000)]
    for rows, classes in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            yield _case(rows, classes, dtype)


def _definition(ft: Tensor, zs: Tensor, distance: Tensor) -> Tensor:
    weight = torch.sigmoid(-(distance - 1.5) / 0.6)[:, None]
    return weight * ft.softmax(1) + (1 - weight) * zs.softmax(1)


def _case(rows: int, classes: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    ft, zs = ((5 * torch.randn(rows, classes, generator=generator)).to(dtype) for _ in range(2))
    distance = 2 * torch.rand(rows, generator=generator)
    compiled = torch.compile(_definition, dynamic=False)
    providers = {
        "torch eager": lambda: [_definition(ft, zs, distance)],
        "torch.compile": lambda: [compiled(ft, zs, distance)],
        "robustft cpu": lambda: [vrf_mix(ft, zs, distance, 1.5, 0.6, backend="cpu")],
    }
    return Case(
        op="vrf_mix",
        mode="forward",
        shape=f"{rows}x{classes}",
        dtype=str(dtype).removeprefix("torch."),
        bytes=3 * rows * classes * dtype.itemsize,
        providers=providers,
        truth=[_definition(ft.double(), zs.double(), distance.double())],
    )

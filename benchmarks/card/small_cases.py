"""Each kernel once at small odd sizes, for compute-sanitizer; wrong results end it with an error.

    compute-sanitizer python -m benchmarks small_cases [--backend triton|cuda] [--op OP]

On the CPU it runs the Triton kernels with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import dive
from benchmarks.rsa import pair as rsa_pair
from robustft import backends
from robustft.backends import contrast
from robustft.backends.cuda import nearest as cuda_nearest
from robustft.backends.search import plans
from robustft.ops import FeatureBank, knn, kth_distance, mpm_nce, rsa, vrf_mix


def _check(what: str, found: Tensor, truth: Tensor, tolerance: float) -> None:
    error = ((found.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).item()
    print(f"  {what:32}{error:.1e}", flush=True)
    if not error <= tolerance:
        raise SystemExit(f"{what}: error {error:.1e}, allowed {tolerance:.0e}")


def _dive(device: str, backend: str, dtype: torch.dtype) -> None:
    for rows, dim in ((37, 67), (5, 1031)):
        batch = dive.Batch.of(rows, dim, dtype, device)
        # Times the rows: float16 gradients stay above its subnormals.
        found, truth = dive.ours(batch, backend, rows)(), batch.truth(rows)
        for i, pair in enumerate(zip(found, truth, strict=True)):
            _check(f"dive {rows}x{dim} {i}", *pair, 2e-2)


def _mpm_nce(device: str, backend: str, dtype: torch.dtype) -> None:
    _contrast(device, backend, dtype, 131, 77)
    if backend == "cuda":  # rows that no block holds; images in slabs of one cluster
        usual, contrast.SCRATCH = contrast.SCRATCH, 1
        try:
            _contrast(device, backend, dtype, 387, 700)
        finally:
            contrast.SCRATCH = usual


def _contrast(device: str, backend: str, dtype: torch.dtype, images: int, width: int) -> None:
    unit = torch.nn.functional.normalize
    x, y = (unit(torch.randn(n, width, device=device), dim=1).to(dtype) for n in (images, 67))
    labels = torch.randint(7, (images,), device=device), torch.randint(7, (67,), device=device)
    mask = labels[0][:, None] == labels[1]
    ways: tuple[tuple[Tensor, dict[str, Any]], ...] = (
        (x, {"image_labels": labels[0], "text_labels": labels[1]}),
        (x, {"mask": mask}),
        (y.flip(0), {"exclude_self": True, "image_labels": labels[1], "text_labels": labels[1]}),
    )
    for x, given in ways:
        losses = []
        for inputs, name in (((x, y), backend), ((x.double(), y.double()), "reference")):
            a, b = (t.detach().requires_grad_() for t in inputs)
            s = torch.tensor(30.0, device=device, dtype=torch.float64 if name == "reference"
                             else torch.float32, requires_grad=True)  # fmt: skip
            loss = mpm_nce(
                a, b, **given, logit_scale=s, margin=0.1, label_smoothing=0.1, backend=name
            )
            losses.append([loss, *torch.autograd.grad(images * loss, (a, b, s))])
        for i, (found, truth) in enumerate(zip(*losses, strict=True)):
            _check(f"mpm_nce {next(iter(given))} {i}", found.detach(), truth.detach(), 2e-2)


# (queries, width): of these shapes, on a card of 227 KB of shared memory, each screening kernel of
# csrc/cuda has its turn: tiles of 64 and 128 queries, resident and flowing past, with wgmma or not,
# blocks alone and in clusters.
_SEARCHES = (
    (19, 67), (67, 67), (67, 600), (67, 1000), (3, 1600), (131, 67), (131, 600), (131, 1000),
)  # fmt: skip


_WGMMA = {"no": (False,), "only": (True,), "both": (False, True)}


def _nearest(
    device: str, backend: str, dtype: torch.dtype, wgmma: tuple[bool, ...] = (False, True)
) -> None:
    n, least, usual = 600, plans.LEAST_SAMPLE, cuda_nearest.USE_WGMMA
    plans.LEAST_SAMPLE = 64  # searches of 600 rows for k = 17 are screened
    plans.plans.cache_clear()
    try:
        for cuda_nearest.USE_WGMMA in wgmma if backend == "cuda" else (False,):
            for count, dim in _SEARCHES:
                rows = torch.randn(n, dim, device=device)
                queries = torch.randn(count, dim, device=device)
                near = torch.cdist(queries.double(), rows.double()).square().sort(1).values[:, :17]
                bank = FeatureBank(rows)
                what = f"{count}x{dim}" + (" wgmma" if cuda_nearest.USE_WGMMA else "")
                found = kth_distance(queries, bank, 17, backend=backend)
                _check(f"kth_distance {what}", found, near[:, -1], 1e-5)
                _check(f"knn {what}", knn(queries, rows, 17, backend=backend)[0], near, 1e-5)
    finally:
        plans.LEAST_SAMPLE, cuda_nearest.USE_WGMMA = least, usual
        plans.plans.cache_clear()


def _vrf(device: str, backend: str, dtype: torch.dtype) -> None:
    z, y = ((3 * torch.randn(19, 131, device=device)).to(dtype) for _ in range(2))
    d = torch.rand(19, device=device)
    for log in (False, True):
        mixed = []
        for inputs, name in (
            ((z, y, d), backend),
            ((z.double(), y.double(), d.double()), "reference"),
        ):
            leaves = [t.detach().requires_grad_() for t in inputs]
            p, q, distance = leaves
            out = vrf_mix(p, q, distance, 0.5, 0.3, log=log, backend=name)
            mixed.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for i, (found, truth) in enumerate(zip(*mixed, strict=True)):
            _check(f"vrf log={log} {i}", found.detach(), truth.detach(), 3e-2)


def _rsa(device: str, backend: str, dtype: torch.dtype) -> None:
    a, b = rsa_pair(131, 67, torch.float32, device)
    b = b[:, :33]
    truth = rsa(a.double(), b.double(), backend="reference")
    _check("rsa", rsa(a, b, backend=backend), truth, 1e-5)


RUN: dict[str, Callable[[str, str, torch.dtype], None]] = {
    "dive": _dive,
    "mpm_nce": _mpm_nce,
    "nearest": _nearest,
    "vrf": _vrf,
    "rsa": _rsa,
}


# Of kernels that differ by dtype in more than conversions.
_DTYPES = {("cuda", "mpm_nce"): (torch.float16, torch.bfloat16)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks small_cases", description=__doc__)
    parser.add_argument("--backend", choices=["triton", "cuda"], default="triton")
    parser.add_argument("--op", choices=list(RUN))
    parser.add_argument(
        "--wgmma",
        choices=["no", "only", "both"],
        default="both",
        help="nearest's kernels of sm_90a",
    )
    given = parser.parse_args(arguments)
    run_of = RUN | {"nearest": functools.partial(_nearest, wgmma=_WGMMA[given.wgmma])}
    on_cpu = backends.interpreting() or backends.emulating()
    if not on_cpu and not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    device = "cpu" if on_cpu else "cuda"
    torch.manual_seed(0)
    for op, run in run_of.items():
        if given.op in (None, op) and given.backend in backends.IMPLEMENTATIONS[op]:
            for dtype in _DTYPES.get((given.backend, op), (torch.float32, torch.float16)):
                if not backends.serves(op, given.backend, device, dtype):
                    continue
                if dtype == torch.float32 or op in ("dive", "mpm_nce", "vrf"):
                    print(f"{given.backend} {op} {str(dtype).removeprefix('torch.')}")
                    run(device, given.backend, dtype)

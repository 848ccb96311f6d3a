"""mpm_nce against torch's own ways to a contrastive loss, in units of one product of the shape.

Three losses by shape and name: InfoNCE (B = C, pairs on the diagonal), a class head (B ≠ C, one
direction, plain cross-entropy: torch's loss in chunks takes no smoothing), and labels
(multi-positive, with margin and smoothing).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import probes
from benchmarks.harness import Call, Case, Factory, compiled, name_of, robustft
from robustft.backends.reference import mpm_nce as reference
from robustft.ops import mpm_nce

SHAPE = "BxCxD"
QUICK = [(64, 64, 32), (64, 10, 32)]
_SQUARES = [(n, n, 512) for n in (128, 256, 512, 1024, 2048, 4096, 8192)]
DEFAULT = [*_SQUARES, (16384, 16384, 512), (512, 1000, 512)]
FULL = [*DEFAULT, (4096, 1000, 512), (512, 512, 768), (4096, 4096, 768)]
MEMORY_ONLY = 16384  # rows from which a CPU is too slow for the peers to be timed
LABELLED = (512, 4096)  # the B = C that are measured with labels too

SCALE = 100.0
MARGIN, SMOOTHING = 0.05, 0.05
CLASSES = 100  # of the labelled batches


def cases(shapes: list[tuple[int, ...]], device: str, quick: bool) -> Iterator[Case]:
    for kind in ("InfoNCE", "labels", "head"):
        for rows, columns, dim in shapes:
            if (rows == columns) == (kind == "head"):
                continue
            if kind == "labels" and not (quick or rows in LABELLED):
                continue
            for dtype in (torch.float32, torch.bfloat16):
                for backward in (False, True):
                    if _timed(rows, device) or (backward and dtype == torch.float32):
                        yield _case(Batch.of(kind, rows, columns, dim, dtype, device, backward))


def _timed(rows: int, device: str) -> bool:
    return device == "cuda" or rows < MEMORY_ONLY


@dataclass(frozen=True)
class Batch:
    """Unit features, labels (None for InfoNCE) and what is to be differentiated."""

    kind: str
    x: Tensor
    y: Tensor
    scale: Tensor
    labels: tuple[Tensor, Tensor] | None
    backward: bool

    @staticmethod
    def of(
        kind: str,
        rows: int,
        columns: int,
        dim: int,
        dtype: torch.dtype,
        device: str,
        backward: bool,
    ) -> Batch:
        """Image and text share what they show, and each modality has a mean of its own.

        A positive's logit lies 8 above the mean negative's, whose deviation is 2 at D = 512: a
        loss of about 1, as in fine-tuning. Near 0 its relative error would say nothing.
        """
        generator = torch.Generator(device).manual_seed(0)

        def random(n: int) -> Tensor:
            return F.normalize(torch.randn(n, dim, device=device, generator=generator), dim=1)

        def classes_of(count: int, *shape: int) -> Tensor:
            return torch.randint(0, count, shape, device=device, generator=generator)

        labels = None
        if kind == "labels":
            image, text = classes_of(min(rows, CLASSES), 2, rows)
            labels = (image, text)
        elif kind == "head":
            labels = (classes_of(columns, rows), torch.arange(columns, device=device))
        means = random(2)
        shown = random(columns)
        of_image = shown if labels is None else shown[labels[0]]
        of_text = shown if labels is None else shown[labels[1]]
        x = F.normalize(means[0] + 0.37 * of_image + 0.78 * random(rows), dim=1)
        y = F.normalize(means[1] + 0.37 * of_text + 0.78 * random(columns), dim=1)
        return Batch(
            kind,
            x.to(dtype).requires_grad_(backward),
            y.to(dtype).requires_grad_(backward),
            torch.tensor(SCALE, device=device, requires_grad=backward),
            labels,
            backward,
        )

    def step(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        """The loss, and the gradients to both features and the scale."""
        if not self.backward:
            with torch.no_grad():
                return [loss(self.x, self.y, self.scale)]
        value = loss(self.x, self.y, self.scale)
        return [value.detach(), *torch.autograd.grad(value, (self.x, self.y, self.scale))]

    def settings(self) -> tuple[float, float, bool]:
        """margin, label_smoothing and symmetric, as mpm_nce takes them."""
        if self.kind == "labels":
            return MARGIN, SMOOTHING, True
        return 0.0, 0.0, self.kind == "InfoNCE"

    def truth(self) -> list[Tensor]:
        """By the reference's blocks of rows in float64: no matrix, whatever the size."""
        x, y, scale = (
            t.detach().double().requires_grad_(self.backward) for t in (self.x, self.y, self.scale)
        )
        return ours(replace(self, x=x, y=y, scale=scale), "reference", 0)()


def _case(batch: Batch) -> Case:
    rows, columns, dim = len(batch.x), len(batch.y), batch.x.shape[1]
    product = 2.0 * rows * columns * dim
    shape = f"{rows}x{columns}"
    return Case(
        op="mpm_nce",
        mode="forward+backward" if batch.backward else "forward",
        variant=f"D = {dim}",
        shape=shape if batch.kind == "InfoNCE" else f"{shape} {batch.kind}",
        dtype=name_of(batch.x.dtype),
        amount=(3 if batch.backward else 1) * product,
        step=product,
        unit="GFLOP/s",
        probes=probes.products(batch.x, batch.y, batch.x.dtype),
        providers=_providers(batch),
        truth=batch.truth if _timed(rows, batch.x.device.type) else None,
        timed=_timed(rows, batch.x.device.type),
    )


def _providers(batch: Batch) -> dict[str, Factory]:
    eager = EAGER[batch.kind](batch)

    def compiled_step() -> Call:
        loss = compiled(eager)
        return lambda: batch.step(loss)

    found: dict[str, Factory] = {
        "torch eager": lambda: lambda: batch.step(eager),
        "torch.compile": compiled_step,
    }
    if batch.kind == "InfoNCE":
        found["open_clip ClipLoss"] = lambda: _open_clip(batch)
        if batch.x.device.type == "cuda":
            found["torch in blocks"] = lambda: lambda: batch.step(_InBlocks.apply)
    if batch.kind == "head":
        found["torch linear_cross_entropy"] = lambda: _linear_cross_entropy(batch)
        if batch.x.device.type == "cuda":
            found["Liger fused head"] = lambda: _liger(batch)
    # How many bytes of products may be kept for the backward pass: all of them, or none.
    keeps = batch.backward and batch.x.device.type == "cpu"  # no other backend keeps any
    ways = {"kept logits": 1 << 62, "recomputed": 0} if keeps else {"": 0}
    reference: dict[str, Factory] = {}
    for way, size in ways.items():
        providers = robustft(
            "mpm_nce",
            batch.x.device.type,
            batch.x.dtype,
            functools.partial(ours, batch, keep_logits=size),
        )
        for name, factory in providers.items():
            if "reference" in name:  # it always recomputes
                reference[name] = factory
            else:
                found[f"{name}, {way}" if way else name] = factory
    return found | reference


def ours(batch: Batch, backend: str, keep_logits: int) -> Callable[[], list[Tensor]]:
    """A step of mpm_nce with a backend; keep_logits: bytes, as mpm_nce takes them."""
    images, texts = batch.labels or (None, None)
    margin, smoothing, symmetric = batch.settings()

    def loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return mpm_nce(
            x, y, images, texts, logit_scale=scale, margin=margin, label_smoothing=smoothing,
            symmetric=symmetric, keep_logits=keep_logits, backend=backend,
        )  # fmt: skip

    return lambda: batch.step(loss)


def _infonce(batch: Batch) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    targets = torch.arange(len(batch.x), device=batch.x.device)

    def loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        logits = (scale * (x @ y.T)).float()
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2

    return loss


def _head(batch: Batch) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    targets = _targets(batch)

    def loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return F.cross_entropy((scale * (x @ y.T)).float(), targets)

    return loss


def _labelled(batch: Batch) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The definition, on the full matrix."""
    images, texts = batch.labels or (None, None)

    def loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return reference.mpm_nce(
            x.float(), y.float(), images, texts,
            logit_scale=scale, margin=MARGIN, label_smoothing=SMOOTHING,
        )  # fmt: skip

    return loss


# Plain torch, as people write it.
EAGER = {"InfoNCE": _infonce, "head": _head, "labels": _labelled}


def _open_clip(batch: Batch) -> Call:
    from open_clip.loss import ClipLoss

    loss = ClipLoss(cache_labels=True)
    return lambda: batch.step(lambda x, y, s: loss(x, y, s.to(x.dtype)))


def _linear_cross_entropy(batch: Batch) -> Call:
    """torch's own loss without the matrix of logits, in chunks (torch 2.13 or so)."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError(f"torch {torch.__version__} has no linear_cross_entropy")
    newer: Any = torch.nn  # mypy may see an older torch
    targets, options = _targets(batch), newer.LinearCrossEntropyOptions()
    loss = newer.functional.linear_cross_entropy
    return lambda: batch.step(lambda x, y, s: loss(s.to(x.dtype) * x, y, targets, options=options))


def _liger(batch: Batch) -> Call:
    """Liger's class head with the loss inside (one direction, mean)."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    targets = _targets(batch)
    return lambda: batch.step(
        lambda x, y, s: LigerFusedLinearCrossEntropyFunction.apply(s.to(x.dtype) * x, y, targets)[0]
    )


class _InBlocks(torch.autograd.Function):
    """InfoNCE by library products on blocks of rows, computed again backward: no B×C matrix."""

    ROWS = 2048

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        rows, columns = [], torch.full((len(y),), -torch.inf, device=x.device)
        diagonal = (x.float() * y.float()).sum(1) * scale
        for part in x.split(_InBlocks.ROWS):
            z = (part @ y.T).float().mul_(scale)
            rows.append(z.logsumexp(1))
            columns = torch.logaddexp(columns, z.logsumexp(0))
        row = torch.cat(rows)
        ctx.save_for_backward(x, y, scale, row, columns)
        return (row + columns - 2 * diagonal).mean() / 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y, scale, row, column = ctx.saved_tensors
        grad_x, grad_y = torch.empty_like(x), torch.zeros(y.shape, device=y.device)
        grad_scale = torch.zeros_like(scale)
        for first in range(0, len(x), _InBlocks.ROWS):
            part = slice(first, first + _InBlocks.ROWS)
            cosines = (x[part] @ y.T).float()
            z = cosines * scale
            p = (z - row[part, None]).exp_() + (z - column).exp_()
            p.diagonal(first).sub_(2)
            p *= grad / (2 * len(x))
            grad_scale += (p * cosines).sum()
            dz = (p * scale).to(x.dtype)
            grad_x[part] = dz @ y
            grad_y += dz.T @ x[part]
        return grad_x, grad_y.to(y.dtype), grad_scale


def _targets(batch: Batch) -> Tensor:
    assert batch.labels is not None
    return batch.labels[0]

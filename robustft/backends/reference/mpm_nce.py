"""Multi-positive margin NCE (R-Adapter, Kim et al., ECCV 2024, arXiv 2408.05749).

    Z_ij  = s·( <x_i, y_j> + δ·[i, j are no positive pair] )
    P_i   = number of positives of row i,   N_i = C − P_i,   ε_i = ε if N_i > 0 else 0
    w_ij  = (1−ε_i)/P_i for positives, ε_i/N_i for the others           (each row sums to 1)
    row_i = LSE_j Z_ij − Σ_j w_ij Z_ij
    loss  = ½·(mean_i row_i + mean_j col_j)     symmetric; col is the same on Zᵀ with its own w
          = mean_i row_i                        one direction

The means run over the anchors that have a positive; every row stays a candidate. With
exclude_self (C = B, or C ≥ B in one direction) (i, i) is no pair: no candidate, no positive, and
N_i = C − 1 − P_i.

`mpm_nce` is the definition. `forward` and `backward` are what backend="reference" runs: blocks of
rows, so that no B×C matrix exists, in float32 (float64 stays float64).

Numerics. Z is about 100 where the loss is about 0, so a sum over exp(Z) is kept as a pair: a shift
(the largest Z) and log Σ exp(Z − shift). The loss is log Σ exp(Z − shift) − Σ w (Z − shift), with
the very Z of the softmax, whose rounding then cancels; Σ w Z from class sums would not cancel.
p − w is subtracted inside the block, before any cast.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustft.backends.options import MpmNceOptions, Positives
from robustft.backends.reference.mpm_nce_sums import (
    Sums,
    Weights,
    cosines_of,
    gradient_of_z,
    merge,
    sums_of,
    weights_of,
)
from robustft.backends.tensors import occurrences, sum_dtype

# Elements of Z in a block of rows. About five such blocks are alive at once: 80 MB in float32.
BLOCK = 1 << 22

# Z of a pair that is none, in units of the largest number: far below all others, and 0·Z is 0.
NOWHERE = -0.25


def mpm_nce(
    image_features: Tensor,
    text_features: Tensor,
    image_labels: Tensor | None = None,
    text_labels: Tensor | None = None,
    *,
    logit_scale: Tensor | float = 100.0,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    symmetric: bool = True,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    exclude_self: bool = False,
) -> Tensor:
    """The loss of features [B, D] and [C, D] on the full matrix, differentiable by autograd."""
    if mask is not None:
        positive = mask
    elif image_labels is None or text_labels is None:
        positive = torch.eye(
            len(image_features), len(text_features), dtype=torch.bool, device=image_features.device
        )
    else:
        positive = image_labels[:, None] == text_labels[None, :]
        positive = positive & (image_labels != ignore_index)[:, None]
    products = image_features @ text_features.T
    is_pair = torch.ones_like(positive)
    if exclude_self:
        is_pair.fill_diagonal_(False)
        positive = positive & is_pair
    z = logit_scale * (products + margin * (~positive).to(products.dtype))
    rows = _mean_over_anchors(z, positive, is_pair, label_smoothing)
    if not symmetric:
        return rows
    return (rows + _mean_over_anchors(z.T, positive.T, is_pair.T, label_smoothing)) / 2


def _mean_over_anchors(
    z: Tensor, positive: Tensor, is_pair: Tensor, label_smoothing: float
) -> Tensor:
    anchors = positive.any(1)
    z, positive, is_pair = z[anchors], positive[anchors], is_pair[anchors]
    positives = positive.sum(1, keepdim=True, dtype=z.dtype)
    negatives = is_pair.sum(1, keepdim=True, dtype=z.dtype) - positives
    epsilon = label_smoothing * (negatives > 0).to(z.dtype)
    w = torch.where(positive, (1 - epsilon) / positives, epsilon / negatives.clamp_min(1))
    log_sum_exp = z.masked_fill(~is_pair, -torch.inf).logsumexp(1)
    return (log_sum_exp - (w * z).masked_fill(~is_pair, 0).sum(1)).mean()


def saved_shapes(
    rows: int, columns: int, symmetric: bool, keep_logits: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of what forward returns for backward; nothing of size B×C is kept."""
    return (2, rows), (2, columns if symmetric else 0), (0,)


def forward(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    options: MpmNceOptions,
    keep_logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, row log-sum-exps [2, B], column log-sum-exps [2, C] or [2, 0], an empty tensor).

    A log-sum-exp is the unevaluated sum of its two entries: the largest Z, and the log of
    Σ exp(Z − largest).
    """
    x, y = image.to(sum_dtype(image)), text.to(sum_dtype(text))
    pairs = _Pairs(x, y, positives, options.exclude_self)
    row_w, col_w = pairs.weights(options.label_smoothing)

    row_sums, col_sums = [], None
    for block, positive in pairs.blocks():
        z = scale * cosines_of(x[block], y, positive, options.margin)
        pairs.strike(z, block, NOWHERE * torch.finfo(z.dtype).max)
        row_sums.append(sums_of(z, pairs.strike(row_w.rows(block).of(positive), block, 0)))
        if options.symmetric:
            w = pairs.strike(col_w.of(positive.T).T, block, 0)
            sums = sums_of(z.T, w.T)
            col_sums = sums if col_sums is None else merge(col_sums, sums)

    rows = Sums(*(torch.cat(parts) for parts in zip(*row_sums, strict=True)))
    loss = (row_w.mean * rows.loss()).sum()
    if col_sums is None:
        cols = loss.new_empty((2, 0))
    else:
        loss = (loss + (col_w.mean * col_sums.loss()).sum()) / 2
        cols = col_sums.log_sum_exp()
    finite = image.isfinite().all() & text.isfinite().all()
    loss = loss.masked_fill(~finite, float("nan"))
    return loss, rows.log_sum_exp(), cols, loss.new_empty(0)


def backward(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    rows: Tensor,
    cols: Tensor,
    kept: Tensor,
    grad: Tensor,
    options: MpmNceOptions,
    need_image: bool,
    need_text: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to image, text and scale from ∂loss/∂Z = ½[(p − w)/rows + (p − w)/columns].

    `rows`, `cols` and `kept` (empty) are forward's. Feature gradients are contiguous;
    one that is not needed comes back empty.
    """
    x, y = image.to(sum_dtype(image)), text.to(sum_dtype(text))
    pairs = _Pairs(x, y, positives, options.exclude_self)
    row_w, col_w = pairs.weights(options.label_smoothing)
    grad = grad / 2 if options.symmetric else grad

    grad_x = x.new_empty(x.shape if need_image else 0)
    grad_y = y.new_zeros(y.shape if need_text else 0)
    grad_scale = torch.zeros_like(scale)
    for block, positive in pairs.blocks():
        cosines = cosines_of(x[block], y, positive, options.margin)
        z = scale * cosines
        grad_z = gradient_of_z(z, rows[:, block], row_w.rows(block), positive)
        if options.symmetric:
            grad_z += gradient_of_z(z.T, cols, col_w, positive.T).T
        pairs.strike(grad_z, block, 0)
        grad_z *= grad
        grad_scale += (grad_z * cosines).sum()
        grad_z *= scale
        if need_image:
            torch.mm(grad_z, y, out=grad_x[block])
        if need_text:
            grad_y.addmm_(grad_z.T, x[block])
    return grad_x.to(image.dtype), grad_y.to(text.dtype), grad_scale


class _Pairs:
    """Which pairs are positive, by blocks of rows, never as a whole unless the caller has it so."""

    def __init__(self, x: Tensor, y: Tensor, positives: Positives, exclude_self: bool) -> None:
        image_labels, text_labels, self.mask, ignore_index = positives
        self.x, self.y, self.exclude_self = x, y, exclude_self
        if image_labels is None or text_labels is None:  # the diagonal
            image_labels = text_labels = torch.arange(len(x), device=x.device)
            ignore_index = -1
        self.image_labels, self.text_labels = image_labels, text_labels
        self.ignore_index = ignore_index

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their positives [b, C]."""
        step = max(1, BLOCK // len(self.y))
        for start in range(0, len(self.x), step):
            block = slice(start, start + step)
            yield block, self._positive(block)

    def strike(self, entries: Tensor, block: slice, value: float) -> Tensor:
        """Put `value` where a block of rows [b, C] has the pairs (i, i), if those are none."""
        if self.exclude_self:
            entries.diagonal(block.start).fill_(value)
        return entries

    def _positive(self, block: slice) -> Tensor:
        if self.mask is not None:
            positive = self.mask[block]
            return self.strike(positive.clone(), block, False) if self.exclude_self else positive
        labels = self.image_labels[block, None]
        positive = (labels == self.text_labels) & (labels != self.ignore_index)
        return self.strike(positive, block, False)

    def weights(self, label_smoothing: float) -> tuple[Weights, Weights]:
        """The weights of the rows and of the columns as anchors."""
        if self.mask is not None:
            counts = self.mask.sum(1), self.mask.sum(0)
        else:
            counts = (
                self._matches(self.image_labels, self.text_labels),
                self._matches(self.text_labels, self.image_labels),
            )
        candidates = len(self.y), len(self.x)
        if self.exclude_self:
            if self.mask is not None:
                selves = self.mask.diagonal().long()
            else:
                mine = self.text_labels[: len(self.x)]
                selves = ((self.image_labels == mine) & (counts[0] > 0)).long()
            counts[0].sub_(selves)
            counts[1][: len(self.x)].sub_(selves)
            candidates = len(self.y) - 1, len(self.x) - 1
        return (
            weights_of(counts[0], candidates[0], label_smoothing, self.x.dtype),
            weights_of(counts[1], candidates[1], label_smoothing, self.x.dtype),
        )

    def _matches(self, labels: Tensor, among: Tensor) -> Tensor:
        """How often each label occurs in `among`; never for ignore_index."""
        return occurrences(labels, among).masked_fill(labels == self.ignore_index, 0)

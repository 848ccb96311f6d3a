"""What a block of pairs adds to mpm_nce: the reference's rows, and those that come by in a ring.

The letters are those of `robustft.backends.reference.mpm_nce`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """One direction: w of a positive and of a negative, and the share in the mean, by anchor."""

    positive: Tensor
    negative: Tensor
    mean: Tensor

    def rows(self, block: slice) -> Weights:
        return Weights(self.positive[block], self.negative[block], self.mean[block])

    def of(self, positive: Tensor) -> Tensor:
        """w of a block whose rows are these anchors."""
        return torch.where(positive, self.positive[:, None], self.negative[:, None])


class Sums(NamedTuple):
    """Of some anchors, over the candidates seen so far: max Z, Σ exp(Z−max), Σ w(Z−max), Σ w."""

    shift: Tensor
    exp: Tensor
    weighted: Tensor
    weight: Tensor

    def loss(self) -> Tensor:
        return self.exp.log() - self.weighted

    def log_sum_exp(self) -> Tensor:
        return torch.stack([self.shift, self.exp.log()])


def sums_of(z: Tensor, w: Tensor) -> Sums:
    shift = z.amax(1)
    z = z - shift[:, None]
    return Sums(shift, z.exp().sum(1), (w * z).sum(1), w.sum(1))


def merge(a: Sums, b: Sums) -> Sums:
    shift = torch.maximum(a.shift, b.shift)
    down_a, down_b = a.shift - shift, b.shift - shift
    return Sums(
        shift,
        a.exp * down_a.exp() + b.exp * down_b.exp(),
        a.weighted + a.weight * down_a + b.weighted + b.weight * down_b,
        a.weight + b.weight,
    )


def gradient_of_z(z: Tensor, log_sum_exp: Tensor, w: Weights, positive: Tensor) -> Tensor:
    """(p − w) times the anchor's share in the mean."""
    p = ((z - log_sum_exp[0][:, None]) - log_sum_exp[1][:, None]).exp_()
    return p.sub_(w.of(positive)).mul_(w.mean[:, None])


def cosines_of(x: Tensor, y: Tensor, positive: Tensor, margin: float) -> Tensor:
    """Z/s: the inner products, plus the margin on negatives. (Cosines where |x| = |y| = 1.)"""
    products = x @ y.T
    return products if margin == 0 else products + margin * (~positive).to(products.dtype)


def weights_of(
    positives: Tensor, candidates: int, label_smoothing: float, dtype: torch.dtype
) -> Weights:
    negatives = candidates - positives
    epsilon = label_smoothing * (negatives > 0).to(dtype)
    anchors = (positives > 0).to(dtype)
    return Weights(
        (1 - epsilon) / positives.clamp_min(1),
        epsilon / negatives.clamp_min(1),
        anchors / anchors.sum(),  # NaN, and so the loss, when there is no anchor
    )

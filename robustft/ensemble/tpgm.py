"""TPGM (arXiv 2303.10720): each tensor's distance from where it began, bounded by a learnt radius.

    θ̃_l = θ0_l + min(1, γ_l / N(θ_l - θ0_l)) · (θ_l - θ0_l)        one γ_l ≥ 0 for each tensor l

N is the tensor's L2 norm, or for "mars" the L1 norm of each of its rows. The radii γ minimise
cross-entropy on ID validation data, by Adam: after training (`tpgm`), or in every step of it
(robustft.methods.tpgm). A radius of ∞ gives the fine-tuned tensor, 0 the pre-trained one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustft.ensemble._checks import (
    check_choice,
    check_positive,
    check_same_classes,
    check_selection_split,
)
from robustft.errors import InputError
from robustft.scalars import real, whole

if TYPE_CHECKING:
    from robustft.models.heads import Classifier

NORMS = ("l2", "mars")
_LEAST = 1e-8
_BETAS, _EPS = (0.9, 0.999), 1e-8


def distances(start: Sequence[Tensor], tuned: Sequence[Tensor], norm: str) -> list[Tensor]:
    """N(θ_l - θ0_l): 0-d for "l2"; for "mars" one a row, [rows, 1, ...] (a vector's: one an
    element)."""
    moved = [b.detach() - a.detach() for a, b in zip(start, tuned, strict=True)]
    if norm == "l2":
        return [torch.linalg.vector_norm(m) for m in moved]
    return [
        m.abs() if m.ndim < 2 else m.abs().sum(dim=tuple(range(1, m.ndim)), keepdim=True)
        for m in moved
    ]


def projected(
    start: Sequence[Tensor], tuned: Sequence[Tensor], radii: Tensor, lengths: Sequence[Tensor]
) -> list[Tensor]:
    """θ̃ of radii [tensors] and the `distances`, with gradients by the radii.

    A radius of at least N gives θ, one of 0 gives θ0, bit for bit.
    """
    ratios = [
        (radius / length.clamp_min(1e-30)).clamp(max=1.0)
        for radius, length in zip(radii.unbind(), lengths, strict=True)
    ]
    return [
        torch.lerp(a.detach(), b.detach(), ratio.to(b.dtype))
        for a, b, ratio in zip(start, tuned, ratios, strict=True)
    ]


class RadiiAdam(nn.Module):
    """Radii γ [tensors] and Adam's state, as buffers: a checkpoint holds them.

    They begin at half the (smallest) distance, and are kept from 1e-8 to the largest distance.
    """

    radius: Tensor
    first: Tensor
    second: Tensor
    count: Tensor

    def __init__(self, tensors: int) -> None:
        super().__init__()
        for name in ("radius", "first", "second"):
            self.register_buffer(name, torch.zeros(tensors))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def begin(self, lengths: Sequence[Tensor]) -> None:
        """Choose the first radii where there are none yet, and bound them by the distances."""
        if int(self.count) == 0:
            self.radius.copy_(torch.stack([length.min() for length in lengths]) / 2)
        self._bound(lengths)

    @torch.no_grad()
    def step(self, gradient: Tensor, lr: float, lengths: Sequence[Tensor]) -> None:
        """One step of Adam along `gradient` [tensors]."""
        self.count += 1
        self.first.lerp_(gradient, 1 - _BETAS[0])
        self.second.lerp_(gradient.square(), 1 - _BETAS[1])
        mean = self.first / (1 - _BETAS[0] ** int(self.count))
        spread = (self.second / (1 - _BETAS[1] ** int(self.count))).sqrt()
        self.radius -= lr * mean / (spread + _EPS)
        self._bound(lengths)

    def _bound(self, lengths: Sequence[Tensor]) -> None:
        most = torch.stack([length.max() for length in lengths]).clamp_min(_LEAST)
        self.radius.clamp_(min=_LEAST).copy_(torch.minimum(self.radius, most))


def learn(
    radii: RadiiAdam,
    model: nn.Module,
    names: Sequence[str],
    start: Sequence[Tensor],
    tuned: Sequence[Tensor],
    lengths: Sequence[Tensor],
    batch: tuple[Tensor, Tensor],
    lr: float,
    mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """One step of the radii on (images, labels): the cross-entropy of `model` with the projected
    tensors in place of its own `names`. mean: of the gradient [tensors], over processes that have
    images of their own. Returns the loss, detached."""
    radius = radii.radius.clone().requires_grad_()
    with torch.enable_grad():
        weights = dict(zip(names, projected(start, tuned, radius, lengths), strict=True))
        logits = torch.func.functional_call(model, weights, (batch[0],))
        loss = F.cross_entropy(logits.float(), batch[1])
        (gradient,) = torch.autograd.grad(loss, radius)
    radii.step(mean(gradient), lr, lengths)
    return loss.detach()


@dataclass(frozen=True)
class Projection:
    """What TPGM learnt: by tensor name its radius and how far it had moved (for "mars" its
    furthest row), and the validation loss of each iteration."""

    radius: dict[str, float]
    moved: dict[str, float]
    losses: tuple[float, ...]


def tpgm(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    val: Any,
    *,
    norm: str = "l2",
    iterations: int = 200,
    lr: float = 1e-2,
    batch_size: int = 256,
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Classifier, Projection]:
    """A new classifier whose tensors are projected by radii learnt on `val`, and the radii.

    Args:
        zero_shot, fine_tuned: classifiers of one architecture and one list of classes.
        val: an ID validation split (`robustft.data.ImageDataset` with the evaluation transform);
            its batches are drawn by `seed`.
        norm: "l2" or "mars"; iterations, lr: of Adam.
        exclude: beginnings of names ("head.") whose tensors stay fine-tuned.

    Only what an image passes through is projected, the image encoder and the head; the text tower
    stays as fine-tuned. Errors: InputError for other classes, another architecture, a test split,
    an empty one, or a setting out of range.
    """
    check_same_classes("fine_tuned", fine_tuned.classnames, "zero_shot", zero_shot.classnames)
    check_choice("norm", norm, NORMS)
    check_selection_split("val", val)
    steps, size = whole("iterations", iterations), whole("batch_size", batch_size)
    if steps < 0 or size < 1 or len(val) == 0:
        raise InputError(
            f"iterations, batch_size, val: got {steps}, {size} and {len(val)} images, expected at "
            "least 0, 1 and 1"
        )
    lr = check_positive("lr", lr)
    names, start, tuned = _moved(zero_shot, fine_tuned, exclude)
    lengths = distances(start, tuned, norm)
    result = copy.deepcopy(fine_tuned).eval()
    losses = []
    radii = RadiiAdam(len(names)).to(next(fine_tuned.parameters()).device)
    if names:
        radii.begin(lengths)
        for number in range(steps):
            batch = _batch(val, number, size, seed, radii.radius.device)
            losses.append(learn(radii, result, names, start, tuned, lengths, batch, lr))
        _put(result, names, projected(start, tuned, radii.radius, lengths))
    return result, Projection(
        dict(zip(names, radii.radius.tolist(), strict=True)),
        {name: float(length.max()) for name, length in zip(names, lengths, strict=True)},
        tuple(float(loss) for loss in losses),
    )


def project(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    radius: float | Mapping[str, float],
    *,
    norm: str = "l2",
) -> Classifier:
    """A new classifier with image encoder and head projected by one radius, or one by name (a
    tensor without one stays fine-tuned). 0 gives the zero-shot tensors, ∞ the fine-tuned ones.

    Errors: InputError as for `tpgm`, for a negative radius, or a name that no moved tensor has.
    """
    check_same_classes("fine_tuned", fine_tuned.classnames, "zero_shot", zero_shot.classnames)
    check_choice("norm", norm, NORMS)
    names, start, tuned = _moved(zero_shot, fine_tuned, ())
    if isinstance(radius, Mapping):
        unknown = [name for name in radius if name not in names]
        if unknown:
            raise InputError(f"radius: got {unknown[0]!r}, which is no tensor that has moved")
        values = [real(f"radius of {n}", radius[n]) if n in radius else math.inf for n in names]
    else:
        values = [real("radius", radius)] * len(names)
    if not all(value >= 0 for value in values):  # a NaN is not
        raise InputError(f"radius: got {radius}, expected numbers of at least 0")
    result = copy.deepcopy(fine_tuned)
    if names:
        radii = torch.tensor(values, device=start[0].device)
        _put(result, names, projected(start, tuned, radii, distances(start, tuned, norm)))
    return result


def _moved(
    zero_shot: Classifier, fine_tuned: Classifier, exclude: Sequence[str]
) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Names, starting and tuned tensors of the image encoder's and the head's parameters that are
    not where they began."""
    from robustft.models.weights import check_same_tensors

    before, after = zero_shot.state_dict(), fine_tuned.state_dict()
    check_same_tensors(before, after, "zero_shot", "fine_tuned")
    names = [
        name
        for name, value in fine_tuned.named_parameters()
        if name.startswith(("clip.visual.", "head."))
        and not name.startswith(tuple(exclude))
        and not torch.equal(value, before[name].to(value.device))
    ]
    device = next(fine_tuned.parameters()).device
    return names, [before[n].to(device) for n in names], [after[n] for n in names]


@torch.no_grad()
def _put(classifier: Classifier, names: Sequence[str], values: Sequence[Tensor]) -> None:
    for name, value in zip(names, values, strict=True):
        classifier.get_parameter(name).copy_(value)


def _batch(val: Any, number: int, size: int, seed: int, device: Any) -> tuple[Tensor, Tensor]:
    """Validation batch `number`: the set is dealt anew, by the seed, whenever it is used up."""
    size = min(size, len(val))
    cycle, place = divmod(number, len(val) // size)
    generator = torch.Generator().manual_seed((seed << 20) + cycle)
    rows = torch.randperm(len(val), generator=generator)[place * size : (place + 1) * size]
    kept = getattr(val.images, "tensors", None)
    if kept is not None:
        return kept[rows].to(device), val.labels[rows].long().to(device)
    items = [val[i] for i in rows.tolist()]  # with its own label, where one stands in for another
    images = torch.stack([item["image"] for item in items])
    return images.to(device), torch.tensor([int(item["label"]) for item in items], device=device)

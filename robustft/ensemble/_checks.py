"""Argument checks: each message names the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from robustft.errors import InputError, InputTypeError
from robustft.scalars import real


class OfSplit(Protocol):
    """What says of which split it is."""

    @property
    def split(self) -> str: ...


class HasSplit(OfSplit, Protocol):
    """What the ensembles need of `robustft.evaluate.Outputs`."""

    @property
    def features(self) -> Tensor: ...
    @property
    def logits(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...


class Samples(NamedTuple):
    """Both models on one split; typed as after `check`."""

    features: Any
    logits_finetuned: Any
    logits_zeroshot: Any
    labels: Any

    def check(self, prefix: str, like: Samples | None = None) -> None:
        columns = None if like is None else like.features.shape[1]
        classes = None if like is None else like.logits_finetuned.shape[1]
        check_matrix(f"{prefix}features", self.features, columns=columns)
        rows = len(self.features)
        check_logits(f"{prefix}logits_finetuned", self.logits_finetuned, rows, classes)
        classes = self.logits_finetuned.shape[1]
        check_logits(f"{prefix}logits_zeroshot", self.logits_zeroshot, rows, classes)
        check_labels(f"{prefix}labels", self.labels, rows, classes)
        for name, value in zip(self._fields[:3], self[:3], strict=True):
            check_finite(f"{prefix}{name}", value)


def check_logits(
    name: str, logits: Any, rows: int | None = None, classes: int | None = None
) -> None:
    check_matrix(name, logits, rows)
    if classes is not None and logits.shape[1] != classes:
        raise InputError(f"{name}: got {logits.shape[1]} classes, expected {classes}")


def check_matrix(
    name: str, value: Any, rows: int | None = None, columns: int | None = None
) -> None:
    if not isinstance(value, Tensor):
        raise InputTypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")
    if value.ndim != 2 or 0 in value.shape or not value.is_floating_point():
        raise InputError(
            f"{name}: got shape {tuple(value.shape)} and dtype {value.dtype}, "
            "expected a non-empty floating-point [N, columns]"
        )
    if rows is not None and len(value) != rows:
        raise InputError(f"{name}: got {len(value)} rows, expected {rows}")
    if columns is not None and value.shape[1] != columns:
        raise InputError(f"{name}: got {value.shape[1]} columns, expected {columns}")


def check_finite(name: str, value: Tensor) -> None:
    bad = (~torch.isfinite(value)).any(dim=1).nonzero().flatten()
    if len(bad):
        some = ", ".join(str(int(i)) for i in bad[:5])
        raise InputError(
            f"{name}: got NaN or Inf in {len(bad)} rows (first: {some}), expected finite values"
        )


def check_labels(name: str, labels: Any, rows: int, classes: int) -> None:
    if not isinstance(labels, Tensor):
        raise InputTypeError(f"{name}: got {type(labels).__name__}, expected a torch.Tensor")
    if labels.shape != (rows,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"{name}: got shape {tuple(labels.shape)} and dtype {labels.dtype}, "
            f"expected integers of shape ({rows},)"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise InputError(
            f"{name}: got values from {int(labels.min())} to {int(labels.max())}, "
            f"expected class indices from 0 to {classes - 1}"
        )


def check_alpha(alpha: float) -> float:
    number = real("alpha", alpha)
    if not 0.0 <= number <= 1.0:
        raise InputError(f"alpha: got {alpha}, expected a number from 0 to 1")
    return number


def check_positive(name: str, value: float) -> float:
    number = real(name, value)
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{name}: got {value}, expected a positive finite number")
    return number


def finite(name: str, value: Any) -> float:
    number = real(name, value)
    if not math.isfinite(number):
        raise InputError(f"{name}: got {value}, expected a finite number")
    return number


def check_flag(name: str, value: Any) -> bool:
    """True or False, NumPy's included: 1 or "no" is more likely a slip than a wish."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if not isinstance(value, bool):
        raise InputTypeError(f"{name}: got {value!r}, expected True or False")
    return value


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")


def check_selection_split(name: str, outputs: OfSplit) -> None:
    """Nothing may be chosen on data that is reported."""
    if outputs.split.strip().lower().startswith("test"):
        raise InputError(
            f"{name}: got outputs of the split {outputs.split!r}, expected a validation split: "
            "nothing is chosen on the data that is reported"
        )


def check_same_classes(
    name: str, got: Sequence[str], other_name: str, expected: Sequence[str]
) -> None:
    """Two models' classes must be the same, in the same order."""
    if list(got) != list(expected):
        raise InputError(
            f"{name}: got {len(got)} classes {_some(got)}, expected the {len(expected)} of "
            f"{other_name} {_some(expected)}"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"({shown}, …)" if len(names) > 3 else f"({shown})"


def subset_index(subset: Tensor | Sequence[int] | None, classes: int) -> Tensor | None:
    """`subset` as int64 class indices [S] (CPU), or None for all classes."""
    if subset is None:
        return None
    index = torch.as_tensor(subset, device="cpu")
    if index.ndim != 1 or len(index) == 0 or index.is_floating_point():
        raise InputError(
            f"class_subset: got shape {tuple(index.shape)} and dtype {index.dtype}, "
            "expected a non-empty list of class indices"
        )
    index = index.long()
    if int(index.min()) < 0 or int(index.max()) >= classes:
        raise InputError(
            f"class_subset: got values from {int(index.min())} to {int(index.max())}, "
            f"expected class indices from 0 to {classes - 1}"
        )
    if len(index.unique()) != len(index):
        raise InputError("class_subset: got a class twice, expected distinct classes")
    return index


def label_columns(labels: Any, rows: int, classes: int, index: Tensor | None) -> Tensor:
    """Labels int [N] as columns of logits that are restricted to the classes of `index` [S], or
    to none: int64 [N]. Errors: InputError for a label outside the classes or the subset."""
    check_labels("labels", labels, rows, classes)
    if index is None:
        return labels.long()
    column = torch.full((classes,), -1, device=labels.device)
    column[index.to(labels.device)] = torch.arange(len(index), device=labels.device)
    found = column[labels.long()]
    strangers = labels[found < 0]
    if len(strangers):
        raise InputError(
            f"labels: got class {int(strangers[0])}, expected only classes of class_subset"
        )
    return found


def spread_columns(values: Tensor, index: Tensor | None, classes: int, fill: float) -> Tensor:
    """Undo a column restriction: [N, S] back to [N, classes], `fill` in the classes left out."""
    if index is None:
        return values
    full = values.new_full((len(values), classes), fill)
    full[:, index.to(values.device)] = values
    return full

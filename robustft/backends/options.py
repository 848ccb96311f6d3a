"""What an op hands to its backends beside single tensors: one object a meaning, listed once.

`schema` and `Gather` take these objects over the border of torch.library, which knows flat
arguments only.
"""

from __future__ import annotations

import typing
from typing import Any, NamedTuple

from torch import Tensor


class Positives(NamedTuple):
    """The positive pairs of mpm_nce. Without labels and mask they are the diagonal."""

    image_labels: Tensor | None  # [B] int64
    text_labels: Tensor | None  # [C] int64; None if and only if image_labels is
    mask: Tensor | None  # [B, C] bool, instead of labels
    ignore_index: int  # an image or text of this label is no anchor


class MpmNceOptions(NamedTuple):
    """The numbers of mpm_nce; robustft.ops.mpm_nce says what they mean."""

    margin: float
    label_smoothing: float
    symmetric: bool
    exclude_self: bool = False


class VrfOptions(NamedTuple):
    """The numbers of vrf_mix; robustft.ops.vrf says what they mean."""

    a: float
    b: float
    temperature_finetuned: float
    temperature_zeroshot: float
    log: bool


Argument = str | type[Any]  # "Tensor image", or one of the objects above

_TYPES = {Tensor | None: "Tensor?", float: "float", int: "int", bool: "bool"}


def schema(arguments: tuple[Argument, ...]) -> str:
    """The flat list of a torch.library schema: an object's fields stand in its place."""
    flat = []
    for argument in arguments:
        if isinstance(argument, str):
            flat.append(argument)
        else:
            hints = typing.get_type_hints(argument)
            flat += [f"{_TYPES[hints[name]]} {name}" for name in argument._fields]
    return ", ".join(flat)


class Gather:
    """Flat arguments back to what backends take: Gather(arguments)(flat)."""

    def __init__(self, arguments: tuple[Argument, ...]) -> None:
        self._kinds: list[tuple[Any, slice]] = []  # a type of object, or tuple; its flat arguments
        first = 0
        for argument in arguments:
            kind: Any = tuple if isinstance(argument, str) else argument
            length = 1 if kind is tuple else len(kind._fields)
            if kind is tuple and self._kinds and self._kinds[-1][0] is tuple:
                self._kinds[-1] = (tuple, slice(self._kinds[-1][1].start, first + 1))
            else:
                self._kinds.append((kind, slice(first, first + length)))
            first += length

    def __call__(self, flat: tuple[Any, ...]) -> list[Any]:
        found: list[Any] = []
        for kind, arguments in self._kinds:
            if kind is tuple:  # as they are
                found += flat[arguments]
            else:  # a NamedTuple's own constructor would take three times as long
                found.append(tuple.__new__(kind, flat[arguments]))
        return found

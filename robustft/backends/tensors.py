"""What the launchers of several backends do to tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from robustft import choices
from robustft.errors import InputError

KERNEL_DTYPES = tuple(getattr(torch, name) for name in choices.KERNEL_DTYPES)


def expect(
    name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...], *, on_cpu: bool = False
) -> None:
    """InputError if a tensor is not what a kernel would read."""
    if x.dtype is not dtype or x.shape != shape or (on_cpu and not x.is_cpu):
        place = " on cpu" if on_cpu else ""
        raise InputError(
            f"{name}: got {x.dtype} of shape {tuple(x.shape)} on {x.device}, "
            f"expected {dtype} of shape {tuple(shape)}{place}"
        )


def _expect_on(
    device: torch.device, name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """As `expect`, on this device."""
    expect(name, x, dtype, shape)
    if x.device != device:
        raise InputError(f"{name}: got a tensor on {x.device}, expected {device}")


def expect_matrices(**tensors: Tensor) -> None:
    """InputError unless all are matrices, not empty, of one shape, dtype (KERNEL_DTYPES) and
    device. They are named as errors shall name them."""
    name, first = next(iter(tensors.items()))
    shape, dtype, device = first.shape, first.dtype, first.device
    if len(shape) != 2 or 0 in shape or dtype not in KERNEL_DTYPES:
        raise InputError(
            f"{name}: got {dtype} of shape {tuple(shape)}, expected a matrix of float32, bfloat16 "
            "or float16"
        )
    for name, x in tensors.items():
        if x.shape != shape or x.dtype is not dtype or x.device != device:
            raise InputError(
                f"{name}: got {x.dtype} of shape {tuple(x.shape)} on {x.device}, "
                f"expected {dtype} of shape {tuple(shape)} on {device}"
            )


def expect_contiguous(name: str, x: Tensor) -> None:
    """InputError unless a kernel that writes rows of x one after the other fills x."""
    if not x.is_contiguous():
        raise InputError(f"{name}: got strides {x.stride()}, expected a contiguous tensor")


def expect_floats(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """InputError for another shape or device (that of `like`), or numbers that are no floats."""
    if x.shape != shape or x.device != like.device or not x.is_floating_point():
        raise InputError(
            f"{name}: got {x.dtype} of shape {tuple(x.shape)} on {x.device}, "
            f"expected floating-point numbers of shape {shape} on {like.device}"
        )


def expect_samples(a: Tensor, b: Tensor) -> None:
    """InputError unless both are matrices of one number of rows, at least 3, on one device."""
    fit = a.ndim == b.ndim == 2 and len(a) == len(b) >= 3 and a.numel() > 0 and b.numel() > 0
    if not fit or a.device != b.device or not (a.is_floating_point() and b.is_floating_point()):
        raise InputError(
            f"b: got {b.dtype} of shape {tuple(b.shape)} on {b.device} beside {a.dtype} of shape "
            f"{tuple(a.shape)} on {a.device}, expected [N, D'] and [N, D], N at least 3"
        )


def expect_contrast(
    image: Tensor,
    text: Tensor,
    image_labels: Tensor | None,
    text_labels: Tensor | None,
    mask: Tensor | None,
    scale: Tensor,
    symmetric: bool,
    exclude_self: bool,
) -> None:
    """InputError for features, pairs and a scale that mpm_nce's kernels cannot take."""
    shape, other, dtype, device = image.shape, text.shape, image.dtype, image.device
    if len(shape) != 2 or len(other) != 2 or 0 in shape or 0 in other or dtype not in KERNEL_DTYPES:
        expect_matrices(image=image)
        expect_matrices(text=text)
    (rows, dim), columns = shape, other[0]
    if text.dtype is not dtype or other[1] != dim or text.device != device:
        raise InputError(
            f"text: got {text.dtype} of shape {tuple(text.shape)} on {text.device}, "
            f"expected {dtype} of shape [C, {dim}] on {device}"
        )
    if (image_labels is None) != (text_labels is None):
        raise InputError("labels: got those of one side, expected both or none")
    if mask is None and image_labels is None and rows != columns:
        raise InputError(f"text: got {columns} rows, expected {rows}: there are no labels")
    if exclude_self:
        expect_selves(rows, columns, symmetric, mask is not None or image_labels is not None)
    if image_labels is not None and text_labels is not None:
        _expect_on(device, "image_labels", image_labels, torch.int64, (rows,))
        _expect_on(device, "text_labels", text_labels, torch.int64, (columns,))
    if mask is not None:
        _expect_on(device, "mask", mask, torch.bool, (rows, columns))
    _expect_on(device, "scale", scale, torch.float32, ())


def expect_selves(rows: int, columns: int, symmetric: bool, labelled: bool) -> None:
    """InputError where row i is not the same sample on both sides, or has no other positive."""
    if columns < rows or (symmetric and columns > rows):
        raise InputError(
            f"text_features: got {columns} rows, expected {rows}{'' if symmetric else ' or more'}: "
            "with exclude_self row i is that of image_features"
        )
    if not labelled:
        raise InputError(
            "exclude_self: got True without labels or mask, expected either: no other row belongs "
            "to row i"
        )


def occurrences(values: Tensor, among: Tensor) -> Tensor:
    """How often each value occurs in `among`."""
    among, values = among.sort().values, values.contiguous()
    return torch.searchsorted(among, values, right=True) - torch.searchsorted(among, values)


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """What an op accumulates in: float64 if one of its tensors has it, else float32."""
    for x in tensors:  # a generator would cost as much again
        if x.dtype is torch.float64:
            return torch.float64
    return torch.float32


Layout = list[tuple[torch.dtype, tuple[int, ...]]]


def expect_packed(packed: list[Tensor], layout: Layout, *, on_cpu: bool = False) -> None:
    """InputError if what was packed of a bank is not laid out as the backend lays it out."""
    if len(packed) != len(layout):
        raise InputError(f"packed: got {len(packed)} tensors, expected {len(layout)}")
    for i, (part, (dtype, shape)) in enumerate(zip(packed, layout, strict=True)):
        expect(f"packed[{i}]", part, dtype, shape, on_cpu=on_cpu)


def expect_search(
    queries: Tensor,
    rows: Tensor,
    packed: list[Tensor],
    k: int,
    layout: Callable[[Tensor], Layout],
    *,
    on_cpu: bool = False,
) -> None:
    """InputError for a search that would read what is not there. packed may be empty.

    layout: what the backend packs of such rows; on_cpu: whether all must lie on the CPU, in
    float32.
    """
    shape, bank = queries.shape, rows.shape
    if len(shape) != 2 or len(bank) != 2 or not shape[1] == bank[1] > 0:
        raise InputError(
            f"queries: got shape {tuple(shape)} for rows of shape {tuple(bank)}, "
            "expected [Q, D] and [N, D]"
        )
    if on_cpu:
        expect("rows", rows, torch.float32, bank, on_cpu=True)
    expect("queries", queries, rows.dtype, shape, on_cpu=on_cpu)
    if not 1 <= k <= bank[0]:
        raise InputError(f"k: got {k}, expected 1 to {bank[0]}, the number of rows")
    if packed:
        expect_packed(packed, layout(rows), on_cpu=on_cpu)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Launches go to torch's current device: make it that of the tensors."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return contextlib.nullcontext()


def unit_stride(*tensors: Tensor) -> list[Tensor]:
    """The matrices with neighbouring columns side by side, copied where they are not."""
    return [x if x.stride(1) == 1 else x.contiguous() for x in tensors]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, whatever their dtype."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in float32, whatever the dtype of a and b."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.device.type == "cuda":
        torch.addmm(total, a, b, torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())

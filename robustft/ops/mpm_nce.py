"""mpm_nce: multi-positive margin NCE of R-Adapter (arXiv 2408.05749), and what it contains."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustft import backends
from robustft.backends.options import MpmNceOptions, Positives
from robustft.backends.tensors import expect_selves, occurrences, sum_dtype
from robustft.errors import InputError, InputTypeError
from robustft.ops import _checks
from robustft.ops._arrays import answers_in_kind
from robustft.ops._first_order import first_order, wants_gradients
from robustft.ops._mpm_nce_ranks import EXCHANGES, mpm_nce_over_ranks
from robustft.ops._register import register
from robustft.ops._resolve import resolve

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

KEEP_LOGITS = 256 << 20  # bytes: B = C = 8,192
_POSITIVES = len(Positives._fields)


@answers_in_kind
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
    group: Any = None,
    exchange: str = "gather",
    keep_logits: int = KEEP_LOGITS,
    backend: str = "auto",
) -> Tensor:
    """Contrastive loss with any number of positives a row, a margin and smoothed targets.

    Z_ij = logit_scale·(<x_i, y_j> + margin·[i, j no positive pair]); every row is a softmax over
    the texts (and every column over the images, if symmetric) against the target that gives its
    positives 1−ε in equal parts and its negatives ε in equal parts. The loss is the mean over the
    anchors that have a positive, averaged over the two directions.

    Without labels, margin and smoothing it is CLIP's InfoNCE and FLYP's loss (arXiv 2212.00638).
    With text_labels = arange(C) and symmetric=False it is softmax cross-entropy over C classes;
    torch's `label_smoothing=e` spreads e over all C classes, the true one included, so that it
    equals label_smoothing = e·(C−1)/C here.

    Args:
        image_features: [B, D], float32, bfloat16, float16 or float64, any strides.
        text_features: [C, D]. Features are taken as they are: normalise before. Different dtypes
            are promoted. Products, softmax and sums are kept in float32 (float64 for float64).
        image_labels, text_labels: integers [B] and [C]; equal labels make a positive pair. Both
            None: row i belongs to row i (B = C).
        logit_scale: 1/τ, a number or a 0-d tensor, which gets a gradient if it asks for one.
        margin: δ, added to the similarity of negatives (before the scale).
        label_smoothing: ε in [0, 1]; 0 for an anchor that has no negative.
        symmetric: both directions, or only images over texts.
        mask: bool [B, C], the positive pairs, instead of labels (multi-label data).
        ignore_index: an image or text of this label is no anchor, but still a candidate.
        exclude_self: the rows of both sides are the same samples, and row i is neither a positive
            nor a candidate for itself: SupCon (arXiv 2004.11362) and NT-Xent (arXiv 2002.05709),
            with symmetric=False. It wants labels or a mask, and B = C; in one direction C may be
            larger, and the first B texts are the same samples as the images. With a group each
            rank's texts are its images so.
        group: a torch.distributed.ProcessGroup over whose ranks the batch is spread, each with
            its own rows and labels, as many as it likes; a mask is [B, texts of all ranks in the
            order of ranks]. Every rank returns the whole batch's loss; its gradients are W times
            that loss's (W ranks), so that DistributedDataParallel's mean over ranks gives the
            whole batch's gradients. All ranks must call, and run the backward pass, together.
            None: one process.
        exchange: with a group, how features reach the other ranks. "gather": all ranks have all,
            O((B+C)·D) memory of the whole batch. "ring": texts go from rank to rank, and each has
            its own rows and one rank's texts at a time; backend is then "auto" or "reference".
        keep_logits: bytes that may be kept for the backward pass, if one can follow. Where the
            products <x_i, y_j> in float32 (4·B·C bytes) fit, the cpu backend keeps them and its
            backward pass saves a matrix product; otherwise it computes them again, in O((B+C)·D)
            memory. Both give the same bits. 0 never keeps them; other backends never do.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns: a scalar, float32 (float64 for float64 features). NaN or Inf in a feature makes it NaN.

    Errors: InputError or InputTypeError for bad shapes, dtypes, devices, labels, numbers or
    backend; also when no pair is positive or a tensor `logit_scale` is not finite, which is looked
    up on the CPU only: on an accelerator it would wait for the device, in a compiled graph it
    would break the graph, and there the loss is NaN instead. Gradients have no gradients: a
    gradient penalty is an InputError.
    """
    _checks.matrix("image_features", image_features, rows="B")
    _checks.matrix("text_features", text_features, rows="C")
    _checks.same_device("text_features", text_features, image_features)
    (rows, width), (columns, text_width) = image_features.shape, text_features.shape
    if text_width != width:
        raise InputError(
            f"text_features: got shape {tuple(text_features.shape)}, expected [C, {width}]"
        )
    margin = _checks.finite("margin", margin)
    label_smoothing = _checks.unit_interval("label_smoothing", label_smoothing)
    ignore_index = _checks.integer("ignore_index", ignore_index)
    keep_logits = _checks.integer("keep_logits", keep_logits)
    if keep_logits < 0:
        raise InputError(f"keep_logits: got {keep_logits}, expected a number of bytes, or 0")

    if mask is not None:
        if image_labels is not None or text_labels is not None:
            raise InputError("mask: got labels too, expected either a mask or labels")
        _check_mask(mask, image_features, columns if group is None else None)
    elif image_labels is None and text_labels is None:
        if rows != columns:
            raise InputError(
                f"text_features: got {columns} rows, expected {rows} as in image_features: "
                "without labels row i belongs to row i"
            )
    elif image_labels is None or text_labels is None:
        missing = "image_labels" if image_labels is None else "text_labels"
        raise InputError(f"{missing}: got None, expected labels for both sides or for neither")
    else:
        image_labels = _labels("image_labels", image_labels, image_features)
        text_labels = _labels("text_labels", text_labels, text_features)
    if exclude_self:
        expect_selves(rows, columns, bool(symmetric), image_labels is not None or mask is not None)
    if group is None and _checks.may_look(image_features):
        _check_positives(image_labels, text_labels, mask, ignore_index, bool(exclude_self))

    image, text = _checks.common_dtype(image_features, text_features)
    # torch.compile takes no tensor twice in one autograd.Function: a view is another tensor.
    if text is image:
        text = text.view_as(text)
    if text_labels is not None and text_labels is image_labels:
        text_labels = text_labels.view_as(text_labels)
    scale = _scale(logit_scale, image)
    differentiated = wants_gradients(image, text, scale)
    if not differentiated:
        keep_logits = 0
    positives = Positives(image_labels, text_labels, mask, ignore_index)
    options = MpmNceOptions(margin, label_smoothing, bool(symmetric), bool(exclude_self))
    if exchange != "gather":
        _check_exchange(exchange, backend)
    if group is not None:
        return mpm_nce_over_ranks(
            mpm_nce, image, text, positives, scale, options, keep_logits, backend, group, exchange,
            None if isinstance(logit_scale, Tensor) else float(logit_scale),
        )  # fmt: skip
    backend = resolve("mpm_nce", image, backend)
    loss: Tensor
    if differentiated:
        loss = _MpmNce.apply(image, text, scale, keep_logits, backend, *positives, *options)
    else:
        loss = _forward(image, text, *positives, scale, *options, 0, backend)[0]
    return loss


def _labels(name: str, value: object, features: Tensor) -> Tensor:
    """int64 labels, one a row of `features`."""
    if not isinstance(value, Tensor) or value.dtype not in _INTEGERS:
        came = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise InputTypeError(f"{name}: got {came}, expected a tensor of integers")
    if value.shape != features.shape[:1]:
        raise InputError(f"{name}: got shape {tuple(value.shape)}, expected [{features.shape[0]}]")
    _checks.same_device(name, value, features)
    return value.long()


def _check_mask(mask: object, image: Tensor, columns: int | None) -> None:
    """columns: None for those of all ranks."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = f"dtype {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise InputTypeError(f"mask: got {came}, expected a tensor of bool")
    if mask.ndim != 2 or len(mask) != len(image) or columns not in (None, mask.shape[1]):
        raise InputError(
            f"mask: got shape {tuple(mask.shape)}, expected [{len(image)}, {columns or 'C'}]"
        )
    _checks.same_device("mask", mask, image)


def _check_positives(
    image_labels: Tensor | None,
    text_labels: Tensor | None,
    mask: Tensor | None,
    ignore_index: int,
    exclude_self: bool,
) -> None:
    """Raise when no pair is positive."""
    if mask is not None:
        if not mask.any() or (exclude_self and mask.sum() == mask.diagonal().sum()):
            raise InputError("mask: got no positive pair, expected at least one True")
    elif exclude_self and image_labels is not None and text_labels is not None:
        anchors = image_labels[image_labels != ignore_index]
        mine = image_labels == text_labels[: len(image_labels)]
        if occurrences(anchors, text_labels).sum() == (mine & (image_labels != ignore_index)).sum():
            raise InputError(
                "image_labels: got no label that another row of text_labels has (ignore_index "
                f"{ignore_index} aside), expected at least one positive pair beside (i, i)"
            )
    elif image_labels is not None and text_labels is not None:
        # Nearly always the first image has a positive, which saves the search for all of them.
        first = image_labels[0]
        if first != ignore_index and (text_labels == first).any():
            return
        anchors = image_labels[image_labels != ignore_index]
        if not torch.isin(anchors, text_labels).any():
            raise InputError(
                "image_labels: got no label that is also in text_labels "
                f"(ignore_index {ignore_index} aside), expected at least one positive pair"
            )


def _check_exchange(exchange: str, backend: str) -> None:
    if exchange not in EXCHANGES:
        raise InputError(f"exchange: got {exchange!r}, expected one of {', '.join(EXCHANGES)}")
    if exchange == "ring" and backend not in ("auto", "reference"):
        raise InputError(f'backend: got {backend!r} with exchange="ring", expected "auto"')


def _scale(logit_scale: Tensor | float, features: Tensor) -> Tensor:
    """The scale as a 0-d tensor in the dtype of the sums."""
    dtype = sum_dtype(features)
    if not isinstance(logit_scale, Tensor):
        return features.new_full((), _checks.finite("logit_scale", logit_scale), dtype=dtype)
    _checks.floating("logit_scale", logit_scale)
    if logit_scale.ndim != 0:
        raise InputError(f"logit_scale: got shape {tuple(logit_scale.shape)}, expected a scalar")
    _checks.same_device("logit_scale", logit_scale, features)
    if _checks.may_look(logit_scale):
        value = logit_scale.item()
        if not math.isfinite(value):
            raise InputError(f"logit_scale: got {value}, expected a finite number")
    return logit_scale if logit_scale.dtype is dtype else logit_scale.to(dtype)


class _MpmNce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        keep_logits: int,
        backend: str,
        *fields: Any,
    ) -> Tensor:
        """fields: those of Positives, then those of MpmNceOptions; autograd looks for tensors in
        no tuple."""
        positives, options = fields[:_POSITIVES], fields[_POSITIVES:]
        loss, *saved = _forward(image, text, *positives, scale, *options, keep_logits, backend)
        ctx.save_for_backward(image, text, *positives[:-1], scale, *saved)
        ctx.ignore_index, ctx.options, ctx.backend = positives[-1], options, backend
        return loss

    @staticmethod
    @first_order("mpm_nce")
    def backward(ctx: Any, grad: Tensor) -> Any:
        need_image, need_text, need_scale = ctx.needs_input_grad[:3]
        image, text, *pairs, scale, rows, columns, kept = ctx.saved_tensors
        grad_image, grad_text, grad_scale = _backward(
            image, text, *pairs, ctx.ignore_index, scale, rows, columns, kept, grad, *ctx.options,
            need_image, need_text, ctx.backend,
        )  # fmt: skip
        return (
            grad_image if need_image else None,
            grad_text if need_text else None,
            grad_scale if need_scale else None,
            *(None,) * (2 + _POSITIVES + len(ctx.options)),
        )


def _fake_forward(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    options: MpmNceOptions,
    keep_logits: int,
    backend: str,
) -> tuple[Tensor, ...]:
    module = backends.load("mpm_nce", image.device.type, image.dtype, backend, image.numel())
    saved = module.saved_shapes(image.shape[0], text.shape[0], options.symmetric, keep_logits)
    return tuple(image.new_empty(shape, dtype=sum_dtype(image)) for shape in ((), *saved))


def _fake_backward(
    image: Tensor, text: Tensor, _positives: Positives, scale: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    need_image, need_text, _backend = rest[-3:]
    return (
        image.new_empty(image.shape if need_image else 0),
        text.new_empty(text.shape if need_text else 0),
        torch.empty_like(scale),
    )


# `rows`, `columns` and `kept` are what the backend's backward wants of its forward; `saved_shapes`
# of its module says how much.
_PROBLEM = ("Tensor image", "Tensor text", Positives, "Tensor scale")
_forward = register(
    "mpm_nce",
    "forward",
    (*_PROBLEM, MpmNceOptions, "int keep_logits"),
    "(Tensor loss, Tensor rows, Tensor columns, Tensor kept)",
    _fake_forward,
)
_backward = register(
    "mpm_nce",
    "backward",
    (
        *_PROBLEM,
        *("Tensor rows", "Tensor columns", "Tensor kept", "Tensor grad"),
        MpmNceOptions,
        *("bool need_image", "bool need_text"),
    ),
    "(Tensor, Tensor, Tensor)",
    _fake_backward,
)

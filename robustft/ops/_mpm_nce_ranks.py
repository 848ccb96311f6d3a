"""mpm_nce of a batch that is spread over ranks.

The loss of the whole batch is a sum over its anchors, rows and columns, of which each rank computes
its own: its images against all texts, its texts against all images, by the op of one process in
one direction. With n of the N image anchors and m of the M text anchors on this rank its part is

    ½·( n/N · loss of my images over all texts + m/M · loss of my texts over all images )

and the loss is the sum of the parts. All features are gathered for that; their gradients, to which
every rank contributes, are summed over the ranks, and each takes its own. With exclude_self a rank
puts its own candidates first, where the op of one process finds each anchor's own pair.

exchange="ring" never has all features: robustft.ops._mpm_nce_ring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustft.backends.options import MpmNceOptions, Positives
from robustft.backends.tensors import sum_dtype
from robustft.errors import InputError
from robustft.ops._first_order import first_order
from robustft.ops._mpm_nce_ring import check_mask, counted_labels, mpm_nce_by_ring, selves
from robustft.ops._ranks import Ranks, as_float, as_int, expect_agreement, outside_graphs

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: How features reach the ranks that compare them.
EXCHANGES = ("gather", "ring")
_AGREED = (
    ("width of the features", int),
    ("dtype of the features", _DTYPES.__getitem__),
    ("positives", ("row by row", "labels", "a mask").__getitem__),
    ("margin", as_float),
    ("label_smoothing", as_float),
    ("symmetric", bool),
    ("ignore_index", int),
    ("exclude_self", bool),
    ("exchange", EXCHANGES.__getitem__),
    ("logit_scale", ("a number", "a tensor").__getitem__),
    ("logit_scale", as_float),  # 0 for a tensor
    ("logit_scale.requires_grad", bool),
    ("image_features.requires_grad", bool),
    ("text_features.requires_grad", bool),
)


class _Direction(NamedTuple):
    """Anchors of this rank over the candidates of all ranks."""

    anchors: Tensor | None  # labels [A]
    candidates: Tensor | None  # labels [N]
    mask: Tensor | None  # [A, N], instead of labels
    share: float  # of the whole loss
    first: int  # candidate, then those after it, then those before


@outside_graphs
def mpm_nce_over_ranks(
    loss: Callable[..., Tensor],
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    options: MpmNceOptions,
    keep_logits: int,
    backend: str,
    group: Any,
    exchange: str,
    number: float | None,
) -> Tensor:
    """The whole batch's loss, on every rank. `loss` is mpm_nce on one process.

    positives: this rank's; a mask is [rows of this rank, texts of all ranks]. number: the scale,
    unless it is a tensor of the caller's.
    """
    ranks = Ranks(group)
    kind = 2 if positives.mask is not None else int(positives.image_labels is not None)
    if kind == 0:  # the pairs are numbered below, and none is to be ignored
        positives = positives._replace(ignore_index=-1)
    if not torch.is_grad_enabled():  # or a graph would be kept that nobody asks for
        image, text, scale = image.detach(), text.detach(), scale.detach()
    agreed = [
        image.shape[1], _DTYPES.index(image.dtype), kind, as_int(options.margin),
        as_int(options.label_smoothing), options.symmetric, positives.ignore_index,
        options.exclude_self, EXCHANGES.index(exchange), number is None, as_int(number or 0.0),
        scale.requires_grad, image.requires_grad, text.requires_grad,
    ]  # fmt: skip
    facts = ranks.facts([len(image), len(text), *map(int, agreed)], image.device)
    expect_agreement(_AGREED, [of_rank[2:] for of_rank in facts])
    rows, columns = [f[0] for f in facts], [f[1] for f in facts]
    if exchange == "ring":
        return mpm_nce_by_ring(image, text, positives, scale, options, ranks, rows, columns)
    over_texts, over_images = _directions(positives, options, ranks, rows, columns, image)

    def part(
        mine: Tensor, texts: Tensor, my_texts: Tensor, images: Tensor, scale: Tensor
    ) -> Tensor:
        """This rank's part of the loss."""
        total = scale.new_zeros(())
        for direction, anchors, candidates in (
            (over_texts, mine, texts),
            (over_images, my_texts, images),
        ):
            if direction.share > 0:
                total = total + direction.share * loss(
                    anchors,
                    candidates.roll(-direction.first, 0) if direction.first else candidates,
                    direction.anchors,
                    direction.candidates,
                    logit_scale=scale,
                    margin=options.margin,
                    label_smoothing=options.label_smoothing,
                    symmetric=False,
                    mask=direction.mask,
                    ignore_index=positives.ignore_index,
                    exclude_self=options.exclude_self,
                    keep_logits=keep_logits,
                    backend=backend,
                )
        return total

    answer: Tensor = _OverRanks.apply(image, text, scale, ranks, rows, columns, options, part)
    return answer


def _directions(
    positives: Positives,
    options: MpmNceOptions,
    ranks: Ranks,
    rows: list[int],
    columns: list[int],
    like: Tensor,
) -> tuple[_Direction, _Direction]:
    """This rank's images over all texts, and its texts over all images."""
    image_labels, text_labels, mask, _ = positives
    first_row, first_column = sum(rows[: ranks.rank]), sum(columns[: ranks.rank])
    my_rows = slice(first_row, first_row + rows[ranks.rank])
    my_columns = slice(first_column, first_column + columns[ranks.rank])
    if mask is not None:
        check_mask(mask, sum(columns))
        whole = ranks.gather(mask, rows)
        if options.exclude_self:
            whole[torch.arange(sum(rows), device=like.device), selves(rows, columns, like)] = False
        is_image, is_text = whole.any(1), whole.any(0)
    elif image_labels is None or text_labels is None:  # image i belongs to text i
        all_images = all_texts = torch.arange(sum(rows), device=like.device)
        is_image = is_text = torch.ones(sum(rows), dtype=torch.bool, device=like.device)
    else:
        all_images, all_texts, of_image, of_text = counted_labels(
            positives, options, ranks, rows, columns
        )
        is_image, is_text = of_image > 0, of_text > 0
    counts = (is_image[my_rows], is_image, is_text[my_columns], is_text)
    images, of_images, texts, of_texts = torch.stack([x.sum() for x in counts]).tolist()
    if of_images == 0:
        raise InputError("image_labels or mask: got no positive pair on any rank, expected one")
    image_share, text_share = images / of_images, texts / of_texts
    if options.symmetric:
        image_share, text_share = image_share / 2, text_share / 2
    else:
        text_share = 0.0
    if not options.exclude_self:
        first_row = first_column = 0
    if mask is not None:
        by_text = whole[:, my_columns].T.roll(-first_row, 1)
        return (
            _Direction(None, None, mask.roll(-first_column, 1), image_share, first_column),
            _Direction(None, None, by_text, text_share, first_row),
        )
    by_row, by_column = all_texts.roll(-first_column), all_images.roll(-first_row)
    return (
        _Direction(all_images[my_rows], by_row, None, image_share, first_column),
        _Direction(all_texts[my_columns], by_column, None, text_share, first_row),
    )


class _OverRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        ranks: Ranks,
        rows: list[int],
        columns: list[int],
        options: MpmNceOptions,
        part: Callable[..., Tensor],
    ) -> Tensor:
        want_image, want_text, want_scale = ctx.needs_input_grad[:3]
        texts = ranks.gather(text, columns)
        images = ranks.gather(image, rows) if options.symmetric else None
        mine = [
            None if x is None else x.detach().requires_grad_(wanted)
            for x, wanted in (
                (image, want_image), (texts, want_text), (text, want_text), (images, want_image),
                (scale, want_scale),
            )
        ]  # fmt: skip
        with torch.enable_grad():
            value = part(*mine)
        ctx.mine, ctx.value = mine, value
        ctx.ranks, ctx.rows, ctx.columns = ranks, rows, columns
        return ranks.sum(value)

    @staticmethod
    @first_order("mpm_nce")
    def backward(ctx: Any, grad: Tensor) -> Any:
        wanted = [x for x in ctx.mine if x is not None and x.requires_grad]
        found: list[Tensor | None] = [None] * len(wanted)
        if ctx.value.requires_grad:  # this rank has an anchor
            found = list(
                torch.autograd.grad(
                    ctx.value, wanted, grad * ctx.ranks.size, retain_graph=True, allow_unused=True
                )
            )
        grads = dict(zip(map(id, wanted), found, strict=True))

        def of(x: Tensor | None) -> Tensor | None:
            """The gradient of what this rank used, zeros if it did not; None if none is wanted."""
            if x is None or id(x) not in grads:
                return None
            given = grads[id(x)]
            return torch.zeros_like(x) if given is None else given

        image, texts, text, images, scale = (of(x) for x in ctx.mine)
        return (
            _own(ctx.ranks, image, images, ctx.rows),
            _own(ctx.ranks, text, texts, ctx.columns),
            scale,
            *(None,) * 5,
        )


def _own(
    ranks: Ranks, anchors: Tensor | None, candidates: Tensor | None, counts: list[int]
) -> Tensor | None:
    """The gradient of this rank's rows: as anchors here, and as candidates on every rank."""
    if anchors is None:
        return None
    if candidates is None:
        return anchors
    dtype = sum_dtype(anchors)
    return (anchors.to(dtype) + ranks.sum_of_mine(candidates.to(dtype), counts)).to(anchors.dtype)

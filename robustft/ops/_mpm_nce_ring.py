"""mpm_nce of a batch that is spread over ranks, none of which ever has all features.

The ranks form a ring. In W turns the texts of each rank come by every other one and home again; a
rank compares its own images with the texts at hand, tile by tile, as the reference on one process
does with its blocks of rows. The sums of its own rows stay; those of the columns travel with the
texts. The backward pass is a second round, in which the gradients of the texts travel with them.
Each product is computed once in either pass. What every rank has of all others is numbers: labels,
and log-sum-exps [C].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustft.backends.options import MpmNceOptions, Positives
from robustft.backends.reference.mpm_nce import NOWHERE
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
from robustft.errors import InputError
from robustft.ops._first_order import first_order
from robustft.ops._ranks import Ranks

# Elements of Z in a tile, of which about five are alive at once: 20 MB in float32.
TILE = 1 << 20


def mpm_nce_by_ring(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    options: MpmNceOptions,
    ranks: Ranks,
    rows: list[int],
    columns: list[int],
) -> Tensor:
    """The whole batch's loss, on every rank; rows, columns: of each rank."""
    round_ = _Round.of(positives, options, ranks, rows, columns, image)
    answer: Tensor = _OverRing.apply(image, text, scale, round_)
    return answer


class _Round(NamedTuple):
    """What every turn needs beside features: who has which columns, which pairs are positive."""

    ranks: Ranks
    columns: list[slice]  # of each rank
    options: MpmNceOptions
    labels: tuple[Tensor, Tensor] | None  # of this rank's images, of all texts
    mask: Tensor | None  # [images of this rank, all texts], instead of labels
    row_weights: Weights  # of this rank's images as anchors
    column_weights: Weights  # of all texts as anchors

    @classmethod
    def of(
        cls,
        positives: Positives,
        options: MpmNceOptions,
        ranks: Ranks,
        rows: list[int],
        columns: list[int],
        like: Tensor,
    ) -> _Round:
        """Counts the positives of every anchor. Errors: InputError for no positive pair at all."""
        ends = list(itertools.accumulate(columns))
        slices = [slice(end - count, end) for end, count in zip(ends, columns, strict=True)]
        first_row = sum(rows[: ranks.rank])
        mine = slice(first_row, first_row + rows[ranks.rank])
        labels, mask = None, positives.mask
        if mask is not None:
            check_mask(mask, ends[-1])
            if options.exclude_self:
                mask = mask.clone()
                mask[:, slices[ranks.rank]].fill_diagonal_(False)
            of_image = ranks.gather(mask.sum(1), rows)
            of_text = ranks.sum(mask.sum(0))
        elif positives.image_labels is None:  # image i belongs to text i
            whole = torch.arange(sum(rows), device=like.device)
            labels = whole[mine], whole
            of_image = of_text = torch.ones_like(whole)
        else:
            all_images, all_texts, of_image, of_text = counted_labels(
                positives, options, ranks, rows, columns
            )
            # An image that is no anchor has no positive; in columns a text of this label neither.
            own = all_images[mine]
            ignored = own == positives.ignore_index
            labels = own.masked_fill(ignored, _NO_LABEL), all_texts
        if not bool(of_image.any()):
            raise InputError("image_labels or mask: got no positive pair on any rank, expected one")
        dtype, itself = sum_dtype(like), int(options.exclude_self)
        by_row = weights_of(of_image, ends[-1] - itself, options.label_smoothing, dtype)
        by_column = weights_of(of_text, sum(rows) - itself, options.label_smoothing, dtype)
        return cls(ranks, slices, options, labels, mask, by_row.rows(mine), by_column)

    def owners(self) -> Iterator[int]:
        """Whose texts are here in each turn: first this rank's own."""
        ranks = self.ranks
        return ((ranks.rank - turn) % ranks.size for turn in range(ranks.size))

    def tiles(self, rows: int, owner: int) -> Iterator[tuple[slice, Tensor]]:
        """Slices of this rank's rows, with their positives among the texts of `owner`."""
        there = self.columns[owner]
        step = max(1, TILE // (there.stop - there.start))
        for start in range(0, rows, step):
            tile = slice(start, min(start + step, rows))
            if self.mask is not None:
                yield tile, self.mask[tile, there]
            else:
                assert self.labels is not None
                images, texts = self.labels
                yield tile, self.strike(images[tile, None] == texts[there], tile, owner, False)

    def strike(self, entries: Tensor, tile: slice, owner: int, value: float) -> Tensor:
        """Put `value` where a tile has an image and itself, if these are no pair."""
        if self.options.exclude_self and owner == self.ranks.rank:
            entries.diagonal(tile.start).fill_(value)
        return entries

    def pass_on(self, owner: int, *given: Tensor) -> list[Tensor]:
        """To the next rank what belongs to the texts of `owner`, along the last or only dimension
        but one; from the one before likewise."""
        before = self.columns[(owner - 1) % self.ranks.size]
        count = before.stop - before.start
        return self.ranks.pass_on(list(given), [(count, *x.shape[1:]) for x in given])


class _OverRing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, round_: _Round) -> Tensor:
        ranks, options, dtype = round_.ranks, round_.options, scale.dtype
        nowhere = NOWHERE * torch.finfo(dtype).max
        x = image.to(dtype)
        found = [
            scale.new_tensor([nowhere, 0, 0, 0]).repeat(len(part), 1) for part in (image, text)
        ]
        mine, theirs = Sums(*found[0].unbind(1)), Sums(*found[1].unbind(1))
        here = text
        for owner in round_.owners():
            y = here.to(dtype)
            weights = round_.column_weights.rows(round_.columns[owner])
            parts = []
            for tile, positive in round_.tiles(len(x), owner):
                z = scale * cosines_of(x[tile], y, positive, options.margin)
                round_.strike(z, tile, owner, nowhere)
                w = round_.row_weights.rows(tile).of(positive)
                parts.append(sums_of(z, round_.strike(w, tile, owner, 0)))
                if options.symmetric:
                    w = round_.strike(weights.of(positive.T).T, tile, owner, 0)
                    theirs = merge(theirs, sums_of(z.T, w.T))
            mine = merge(mine, Sums(*(torch.cat(x) for x in zip(*parts, strict=True))))
            if options.symmetric:
                (sums,) = round_.pass_on(owner, torch.stack(theirs, dim=1))
                theirs = Sums(*sums.unbind(1))
            if (owner - ranks.rank) % ranks.size != 1 and ranks.size > 1:
                (here,) = round_.pass_on(owner, here)
        value = (round_.row_weights.mean * mine.loss()).sum()
        over_images = scale.new_empty(0, 2)
        if options.symmetric:
            own = round_.column_weights.rows(round_.columns[ranks.rank])
            value = (value + (own.mean * theirs.loss()).sum()) / 2
            counts = [there.stop - there.start for there in round_.columns]
            over_images = ranks.gather(theirs.log_sum_exp().T, counts)
        finite = image.isfinite().all() & text.isfinite().all()
        ctx.save_for_backward(image, text, scale, mine.log_sum_exp(), over_images.T)
        ctx.round_ = round_
        return ranks.sum(value.masked_fill(~finite, float("nan")))

    @staticmethod
    @first_order("mpm_nce")
    def backward(ctx: Any, grad: Tensor) -> Any:
        image, text, scale, over_texts, over_images = ctx.saved_tensors
        want_image, want_text, _ = ctx.needs_input_grad[:3]
        round_: _Round = ctx.round_
        ranks, options = round_.ranks, round_.options
        # DistributedDataParallel takes the mean over ranks.
        grad = grad * ranks.size / (2 if options.symmetric else 1)
        x = image.to(scale.dtype)
        grad_x = torch.zeros_like(x) if want_image else None
        grad_y = torch.zeros_like(text, dtype=scale.dtype) if want_text else None
        grad_scale = torch.zeros_like(scale)
        here = text
        for owner in round_.owners():
            y, there = here.to(scale.dtype), round_.columns[owner]
            for tile, positive in round_.tiles(len(x), owner):
                cosines = cosines_of(x[tile], y, positive, options.margin)
                z = scale * cosines
                grad_z = gradient_of_z(
                    z, over_texts[:, tile], round_.row_weights.rows(tile), positive
                )
                if options.symmetric:
                    weights = round_.column_weights.rows(there)
                    grad_z += gradient_of_z(z.T, over_images[:, there], weights, positive.T).T
                round_.strike(grad_z, tile, owner, 0)
                grad_z *= grad
                grad_scale += (grad_z * cosines).sum()
                grad_z *= scale
                if grad_x is not None:
                    grad_x[tile].addmm_(grad_z, y)
                if grad_y is not None:
                    grad_y.addmm_(grad_z.T, x[tile])
            if grad_y is not None:
                (grad_y,) = round_.pass_on(owner, grad_y)
            if (owner - ranks.rank) % ranks.size != 1 and ranks.size > 1:
                (here,) = round_.pass_on(owner, here)
        return (
            None if grad_x is None else grad_x.to(image.dtype),
            None if grad_y is None else grad_y.to(text.dtype),
            grad_scale,
            None,
        )


# Of an image that is no anchor: no text's label, as far as int64 goes.
_NO_LABEL = -(2**63)


def check_mask(mask: Tensor, columns: int) -> None:
    """InputError unless a rank's mask has a column for each text of all ranks."""
    if mask.shape[1] != columns:
        raise InputError(f"mask: got {mask.shape[1]} columns, expected {columns}, all ranks' texts")


def counted_labels(
    positives: Positives,
    options: MpmNceOptions,
    ranks: Ranks,
    rows: list[int],
    columns: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The labels of all images and of all texts, and how many positives each of them has."""
    assert positives.image_labels is not None
    assert positives.text_labels is not None
    ignore_index = positives.ignore_index
    images = ranks.gather(positives.image_labels, rows)
    texts = ranks.gather(positives.text_labels, columns)
    of_image = occurrences(images, texts).masked_fill(images == ignore_index, 0)
    of_text = occurrences(texts, images).masked_fill(texts == ignore_index, 0)
    if options.exclude_self:
        own = selves(rows, columns, images)
        same = (images == texts[own]) & (images != ignore_index)
        of_image[same] -= 1
        of_text[own[same]] -= 1
    return images, texts, of_image, of_text


def selves(rows: list[int], columns: list[int], like: Tensor) -> Tensor:
    """Of every rank's images, which text is the same sample: the rank's i-th of its i-th."""
    starts = itertools.accumulate(columns, initial=0)
    own = [torch.arange(n, device=like.device) + at for n, at in zip(rows, starts, strict=False)]
    return torch.cat(own)

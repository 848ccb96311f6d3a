"""Semantic segmentation as classification of masked regions, and what it is measured by.

A model says of each region of an image which class it has (robustft.data.regions). Here these
become a class for each pixel, and the pixels of all images one confusion matrix: images are taken
one at a time, so that nothing grows with their number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustft.accuracy import NONE
from robustft.data.regions import ASSEMBLIES, RegionDataset
from robustft.errors import InputError
from robustft.evaluate.share import ALONE, Share

#: What a segmentation is measured by, as result lines call it.
MEASURES = ("miou", "pixel-accuracy", "mean-accuracy", "frequency-weighted-iou")
_NUMBERS = 2**24  # of masks or classes times pixels that are held at once


def assemble(
    masks: Tensor, probabilities: Tensor, weights: Tensor | None = None, *, rule: str = "sum"
) -> Tensor:
    """The class of each pixel, int64 [H, W]: -1 where no mask is.

    masks: bool [M, H, W]; probabilities: floating [M, C], what each is; weights: [M] ≥ 0, by
    default 1; rule: "sum", the class with the highest Σ_m weight_m · p_m(c) over the masks m on the
    pixel, as MaskFormer infers semantics (arXiv 2107.06278); "highest", the class of the one mask
    with the highest weight_m · max_c p_m(c). Of equals the first class, and the first mask. A mask
    whose row is not finite says nothing.

    Errors: InputError for an unknown rule, or masks and probabilities that do not fit.
    """
    if rule not in ASSEMBLIES:
        raise InputError(f"rule: got {rule!r}, expected one of {', '.join(ASSEMBLIES)}")
    if masks.dtype != torch.bool or masks.ndim != 3:
        raise InputError(f"masks: got {masks.dtype} {list(masks.shape)}, expected bool [M, H, W]")
    if probabilities.ndim != 2 or len(probabilities) != len(masks):
        raise InputError(
            f"probabilities: got {list(probabilities.shape)}, expected [{len(masks)}, C]"
        )
    flat = masks.flatten(1)
    found = torch.full(flat.shape[1:], NONE, dtype=torch.int64, device=masks.device)
    scores = probabilities.to(masks.device)
    if weights is not None:
        scores = scores * weights.to(scores).unsqueeze(1)
    scores = scores.masked_fill(~scores.isfinite().all(dim=1, keepdim=True), 0.0)
    if len(masks) and rule == "sum":
        step = max(1, _NUMBERS // max(scores.shape))
        for start in range(0, len(found), step):
            part = slice(start, start + step)
            best, label = (scores.T @ flat[:, part].to(scores.dtype)).max(dim=0)
            found[part] = label.masked_fill(best <= 0, NONE)
    elif len(masks):
        surest, label = scores.max(dim=1)
        for m in surest.argsort(descending=True, stable=True).flip(0).tolist():
            if surest[m] > 0:
                found[flat[m]] = label[m]
    return found.view(masks.shape[1:])


def confusion_matrix(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How many pixels of a class are said to be of which: int64 [C, C + 1], the last column those
    of which nothing is said.

    predicted, truth: int of one shape, -1 for none; pixels whose truth is none do not count.
    """
    counted = truth >= 0
    said = predicted[counted]
    said = torch.where(said < 0, classes, said)
    cells = truth[counted] * (classes + 1) + said
    counts = torch.bincount(cells, minlength=classes * (classes + 1))
    return counts.view(classes, classes + 1)


def segmentation_measures(confusion: Tensor) -> dict[str, Any]:
    """The measures of a confusion matrix int64 [C, C + 1], each in [0, 1], as detectron2's
    evaluator has them, by which OVSeg and MaskFormer are reported.

    "miou", "mean-accuracy": means over the classes that the ground truth has; "iou": of each class
    TP / (TP + FP + FN), None for one that it has not; "pixel-accuracy"; "frequency-weighted-iou":
    the mean of "iou" by pixels of the ground truth. Pixels of which nothing is said are missed by
    their class and count as no other's.

    Errors: InputError for another shape, or a ground truth without a pixel.
    """
    if confusion.ndim != 2 or confusion.shape[1] != len(confusion) + 1:
        raise InputError(f"confusion: got {list(confusion.shape)}, expected [C, C + 1]")
    hits = confusion.diagonal().double()
    true, said = confusion.sum(dim=1).double(), confusion[:, :-1].sum(dim=0).double()
    there = true > 0
    if not bool(there.any()):
        raise InputError("confusion: got no pixel, expected a ground truth with a labelled one")
    iou, recall = (hits / (true + said - hits))[there], (hits / true)[there]
    each = iter(iou.tolist())
    return {
        "miou": float(iou.mean()),
        "pixel-accuracy": float(hits.sum() / true.sum()),
        "mean-accuracy": float(recall.mean()),
        "frequency-weighted-iou": float((iou * true[there]).sum() / true.sum()),
        "iou": [next(each) if has else None for has in there.tolist()],
    }


@torch.no_grad()
def segment(
    dataset: RegionDataset,
    scores: Tensor,
    *,
    rows: Tensor | None = None,
    class_subset: Tensor | None = None,
    device: str | torch.device = "cpu",
    share: Share = ALONE,
) -> Tensor:
    """The confusion matrix int64 [C, C + 1] of a data set whose regions have these scores.

    scores: logits or log-probabilities [N, C]; rows: int64 [N], which regions they are of, None for
    all. An image whose file could not be read has regions and none among these: it is left out.
    class_subset: the classes that can be said. share: whose ranks take every W-th image and call
    together; all get the sum.
    """
    rows = torch.arange(len(dataset)) if rows is None else rows
    classes = scores.shape[1]
    columns = torch.arange(classes) if class_subset is None else class_subset
    scene = dataset.scene[rows]
    order = scene.argsort(stable=True)
    ends = torch.bincount(scene, minlength=len(dataset.scenes)).cumsum(0).tolist()
    readable = set(scene.tolist()) | (set(range(len(ends))) - set(dataset.scene.tolist()))
    total = torch.zeros(classes, classes + 1, dtype=torch.int64)
    for k in range(share.rank, len(ends), share.size):
        if k not in readable:
            continue
        mine = order[ends[k - 1] if k else 0 : ends[k]]
        truth = dataset.truth(k)
        predicted = torch.full_like(truth, NONE)
        if len(mine):
            masks = torch.stack([dataset.mask(row) for row in rows[mine].tolist()])
            said = assemble(
                masks.to(device),
                scores[mine][:, columns].float().softmax(dim=1),
                dataset.weight[rows[mine]],
                rule=dataset.assembly,
            ).cpu()
            predicted = torch.where(said < 0, NONE, columns[said.clamp(min=0)])
        total += confusion_matrix(predicted, truth, classes)
    return share.sum(total)

"""Image–text retrieval: recall at 1, 5 and 10 in both directions, an image having several captions.

Image to text: the share of images one of whose captions is among the K nearest of all captions.
Text to image: the share of captions whose image is among the K nearest of all images. Nearest is
by cosine, found by robustft.ops.knn, so that no images × captions matrix is ever made; of exactly
equal candidates the one listed first counts as nearer, which knows nothing of what is right.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustft.data.captioned import CaptionedDataset
from robustft.data.images import StoredImages
from robustft.data.loading import in_memory, load_ranges
from robustft.ensemble._checks import check_labels, check_matrix, check_selection_split
from robustft.errors import InputError
from robustft.evaluate.collect import KeptImages
from robustft.evaluate.share import ALONE, Share
from robustft.models.clip import evaluating
from robustft.ops import FeatureBank, knn
from robustft.progress import each

AT = (1, 5, 10)
DIRECTIONS = ("image-to-text", "text-to-image")
MEASURES = tuple(f"{way}-R@{k}" for way in DIRECTIONS for k in AT)
MEAN = "mean-recall"
_QUERIES = 4096  # that are searched for together


@dataclass(frozen=True)
class Recalls:
    """values: each of MEASURES, in [0, 1]; images, captions: how many were there to be found;
    split: of which data."""

    values: Mapping[str, float]
    images: int
    captions: int
    split: str

    @property
    def mean(self) -> float:
        """The mean of all six, a sixth of what is elsewhere called rsum."""
        return statistics.fmean(self.values[name] for name in MEASURES)


def recalls(
    image: Tensor,
    text: Tensor,
    owners: Tensor,
    *,
    share: Share = ALONE,
    backend: str = "auto",
) -> dict[str, float]:
    """Each of MEASURES, such as {"image-to-text-R@1": 0.58, ...}, in [0, 1].

    Args:
        image: [N, D] features; text: [M, D] of captions; floating, on one device. They are taken
            in float32 and scaled to length 1. A row with NaN or Inf finds nothing and is not found.
        owners: int [M], of which image each caption is; each has at least one.
        share: which queries are this process's; all processes get the numbers of one.
        backend: of robustft.ops.knn.

    Where there are fewer than K candidates, all of them count as found.
    Errors: InputError for shapes that do not fit together, or owners that are no images.
    """
    _check(image, text, owners)
    image, text = (F.normalize(x.detach().float(), dim=1) for x in (image, text))
    owners = owners.long().to(image.device)
    own = torch.arange(len(image), device=image.device)
    found = {
        DIRECTIONS[0]: _hits(image, own, text, owners, share, backend) / len(image),
        DIRECTIONS[1]: _hits(text, owners, image, own, share, backend) / len(text),
    }
    return {
        f"{way}-R@{k}": float(value)
        for way, values in found.items()
        for k, value in zip(AT, values, strict=True)
    }


def _hits(
    queries: Tensor, of_query: Tensor, bank: Tensor, of_bank: Tensor, share: Share, backend: str
) -> Tensor:
    """How many queries find a candidate of their own image among the first 1, 5, 10: float64."""
    hits = torch.zeros(len(AT), dtype=torch.long)
    sound = bank.isfinite().all(dim=1)
    if bool(sound.any()):
        rows, of_row = FeatureBank(bank[sound]), of_bank[sound]
        most = min(max(AT), len(rows))
        for batch in share.batches(len(queries), _QUERIES):
            part = slice(batch.start, batch.stop)
            _, nearest = knn(queries[part], rows, most, backend=backend)
            right = (of_row[nearest.clamp_min(0)] == of_query[part, None]) & (nearest >= 0)
            hits += torch.stack([right[:, :k].any(dim=1).sum() for k in AT]).cpu()
    return share.sum(hits).double()


@torch.no_grad()
def retrieve(
    model: Any,
    tokenizer: Any,
    dataset: CaptionedDataset,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    workers: int = 0,
    kept: KeptImages | None = None,
    share: Share = ALONE,
) -> Recalls:
    """The recalls of an open_clip model (in eval mode) on a data set whose images are transformed
    to tensors. The precision is that of the autocast around the call.

    Damaged images are left out with their captions; a warning counts them. kept: where decoded
    images stay for another pass; share: among processes, which all get the numbers of one.
    Errors: InputError for a data set without a transform, or without an image that can be read.
    """
    if dataset.transform is None and in_memory(dataset) is None:
        raise InputError(
            f"dataset: got {dataset.name} without a transform, expected images that it turns into "
            "tensors (see with_transform)"
        )
    device = torch.device(device)
    model.to(device)
    texts = share.batches(len(dataset.texts), batch_size)
    with evaluating(model):
        image = share.rows(
            [
                model.encode_image(batch.to(device, non_blocking=True)).float()
                for batch in each(
                    _images(dataset, batch_size, workers, kept, share),
                    dataset.name,
                    len(share.batches(len(dataset), batch_size)),
                    "batch",
                )
            ],
            len(dataset),
            batch_size,
        )
        text = share.rows(
            [
                model.encode_text(tokenizer(dataset.texts[r.start : r.stop]).to(device)).float()
                for r in each(texts, f"captions of {dataset.name}", len(texts), "batch")
            ],
            len(dataset.texts),
            batch_size,
        )
    if isinstance(dataset.images, StoredImages):
        share.tell_damaged(dataset)
        dataset.say_damaged()
    whole = ~dataset.damaged
    if not bool(whole.any()):
        raise InputError(
            f"dataset: got {len(dataset)} images of {dataset.name} ({dataset.split}), none of "
            "which can be read, expected at least one"
        )
    said = whole[dataset.owners]
    place = whole.cumsum(0) - 1
    found = recalls(
        image[whole].to(device),
        text[said].to(device),
        place[dataset.owners[said]],
        share=share,
    )
    return Recalls(found, int(whole.sum()), int(said.sum()), dataset.split)


def _images(
    dataset: CaptionedDataset,
    batch_size: int,
    workers: int,
    kept: KeptImages | None,
    share: Share,
) -> Iterator[Tensor]:
    """This process's batches of images."""
    mine = share.batches(len(dataset), batch_size)
    loaded = load_ranges(dataset, mine, workers)
    if kept is None or in_memory(dataset) is not None:
        yield from (images for _, images in loaded)
        return
    batches: Iterable[dict[str, Tensor]] = (
        {"image": images, "label": torch.tensor(rows)} for rows, images in loaded
    )
    for batch in kept.batches(dataset, batches, sum(map(len, mine))):
        yield batch["image"]


@dataclass(frozen=True)
class RecallChoice:
    """The α with the highest mean recall on validation data, the α tied with it, and the curve of
    (α, mean recall) on `n` images."""

    alpha: float
    mean_recall: float
    tied: tuple[float, ...]
    curve: tuple[tuple[float, float], ...]
    n: int

    def __str__(self) -> str:
        text = f"α={self.alpha:g}: mean recall {100 * self.mean_recall:.1f} % on {self.n} "
        text += "validation images"
        others = [f"{alpha:g}" for alpha in self.tied if alpha != self.alpha]
        if others:
            text += f", tied with {', '.join(others)}: the one nearest to the fine-tuned model"
        return text


def select_by_recall(found: Mapping[float, Recalls]) -> RecallChoice:
    """The α with the highest mean recall; of tied ones the largest, as in
    `robustft.ensemble.select.select_alpha`. found: by α, all on one validation split.

    Errors: InputError for none, or a test split.
    """
    if not found:
        raise InputError("found: got none, expected at least one alpha")
    for alpha, one in found.items():
        check_selection_split(f"the recalls at alpha={alpha}", one)
    curve = tuple((alpha, found[alpha].mean) for alpha in sorted(found))
    top = max(score for _, score in curve)
    tied = tuple(alpha for alpha, score in curve if score == top)
    n = next(iter(found.values())).images
    return RecallChoice(alpha=max(tied), mean_recall=top, tied=tied, curve=curve, n=n)


def _check(image: Tensor, text: Tensor, owners: Tensor) -> None:
    check_matrix("image", image)
    check_matrix("text", text, columns=image.shape[1])
    check_labels("owners", owners, len(text), len(image))
    without = len(image) - len(owners.unique())
    if without:
        raise InputError(
            f"owners: got {without} of {len(image)} images without a caption, expected one of each"
        )

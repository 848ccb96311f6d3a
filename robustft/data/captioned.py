"""Images with captions of their own in place of classes, for image–text retrieval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustft.data.datasets import ImageDataset
from robustft.data.transforms import Transform
from robustft.errors import InputError, warn


class CaptionedDataset(ImageDataset):
    """Images, each with one caption or several, and no classes.

    texts: M captions; owners: int [M], of which of the N images each is; each image has at least
    one. listed: how many captions the source lists, where no more than the first few of an image
    are taken. Items: {"image", "label": index, "index"}.
    Errors: InputError for owners that are no images, or an image without a caption.
    """

    def __init__(
        self,
        images: Sequence[Any] | np.ndarray,
        texts: Sequence[str],
        owners: Sequence[int] | np.ndarray | torch.Tensor,
        *,
        name: str,
        split: str,
        listed: int | None = None,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(
            images,
            range(len(images)),
            classnames=[],
            name=name,
            split=split,
            transform=transform,
        )
        self.texts = list(texts)
        self.owners = torch.as_tensor(owners, dtype=torch.long)
        self.listed = len(self.texts) if listed is None else listed
        if self.owners.shape != (len(self.texts),):
            raise InputError(
                f"owners of {name!r}: got {list(self.owners.shape)}, expected [{len(self.texts)}], "
                "one a caption"
            )
        have = torch.zeros(len(self), dtype=torch.bool)
        if len(self.owners):
            low, high = int(self.owners.min()), int(self.owners.max())
            if not 0 <= low <= high < len(self):
                raise InputError(
                    f"owners of {name!r}: got {low}..{high}, expected 0..{len(self) - 1}"
                )
            have[self.owners] = True
        if not bool(have.all()):
            raise InputError(
                f"owners of {name!r}: got no caption of image {int((~have).nonzero()[0])}, "
                "expected at least one of each"
            )

    @property
    def held(self) -> str:
        return f"{len(self):,} images, {len(self.texts):,} captions"

    def pairs(self) -> ImageDataset:
        """Every caption with its image, as training data: row j is caption j, and its label tells
        the image, so that captions of one image are positives of each other."""
        image: Any = super()._take(self.owners.tolist())
        return ImageDataset(
            image.images,
            self.owners,
            classnames=[],
            name=self.name,
            split=self.split,
            captions=self.texts,
            transform=self.transform,
        )

    def _take(self, rows: list[int]) -> Any:
        other = super()._take(rows)
        place = torch.full((len(self),), -1)
        place[rows] = torch.arange(len(rows))
        kept = (place[self.owners] >= 0).nonzero().flatten()
        other.labels = torch.arange(len(rows))
        other.texts = [self.texts[j] for j in kept.tolist()]
        other.owners = place[self.owners[kept]]
        other.listed = len(other.texts)
        return other


def together(
    rows: Iterable[tuple[str, str]], where: str | Path, *, most: int | None = None
) -> tuple[list[str], list[str], list[int], int]:
    """Images in the order in which they first occur, their captions and owners, and how many
    captions were listed; rows: (image, caption), an image in any number of them.

    Blank captions are left out, and images that have no other; one warning counts both. most: how
    many captions of an image are taken, its first ones; None for all.
    """
    said: dict[str, list[str]] = {}
    blank = listed = 0
    for image, caption in rows:
        own = said.setdefault(image, [])
        if caption.strip():
            listed += 1
            own.append(caption.strip())
        else:
            blank += 1
    images = [image for image, own in said.items() if own]
    if blank or len(images) < len(said):
        warn(
            f"{where}: {blank} blank captions, and {len(said) - len(images)} of {len(said)} images "
            "that have no other, are left out"
        )
    taken = [said[image][:most] for image in images]
    owners = [place for place, own in enumerate(taken) for _ in own]
    return images, [text for own in taken for text in own], owners, listed

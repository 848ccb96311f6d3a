"""Corrupting pixels, pictures, and whole data sets."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from robustft.data.corruptions import blur, digital, noise, weather
from robustft.data.corruptions.levels import Bytes
from robustft.data.corruptions.names import NAMES, SEVERITIES, Corrupted, Corruption
from robustft.data.datasets import ImageDataset
from robustft.data.images import StoredImages, TensorImages, file_states
from robustft.data.regions import RegionDataset
from robustft.errors import InputError
from robustft.optional import require

_DRAWN = 17  # first word of the seeds that images are corrupted by
_SHORTER, _SIDE = 256, 224  # of the image, and of its middle, in the release
_QUALITY = 85  # of the release's JPEGs
_VERSION = 1  # of what the corruptions make: features of others are no longer these

_CORRUPTIONS: dict[str, Callable[[Bytes, int, np.random.Generator], Bytes]] = {
    "gaussian-noise": noise.gaussian_noise,
    "shot-noise": noise.shot_noise,
    "impulse-noise": noise.impulse_noise,
    "defocus-blur": blur.defocus_blur,
    "glass-blur": blur.glass_blur,
    "motion-blur": blur.motion_blur,
    "zoom-blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic-transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg-compression": digital.jpeg_compression,
}


def corrupted_pixels(pixels: Bytes, name: str, severity: int, rng: np.random.Generator) -> Bytes:
    """uint8 [S, S, 3] under a corruption. Constants are made for S = 224.

    Errors: InputError for an unknown name or severity.
    """
    if name not in _CORRUPTIONS:
        raise InputError(f"corruption: got {name!r}, expected one of {', '.join(NAMES)}")
    if severity not in SEVERITIES:
        raise InputError(f"severity: got {severity!r}, expected 1 to 5")
    return _CORRUPTIONS[name](pixels, severity, rng)


def corrupt(picture: Any, name: str, severity: int, rng: np.random.Generator) -> Any:
    """A PIL image as ImageNet-C would have it: its shorter side brought to 256 pixels, the middle
    224 × 224 corrupted, and that through a JPEG of quality 85."""
    transforms = require("torchvision.transforms", extra="openclip")
    steps = transforms.Compose([transforms.Resize(_SHORTER), transforms.CenterCrop(_SIDE)])
    pixels = np.asarray(steps(picture.convert("RGB")))
    found = digital.as_jpeg(corrupted_pixels(pixels, name, severity, rng), _QUALITY)
    return require("PIL.Image", extra="openclip").fromarray(found)


class CorruptedImages(StoredImages):
    """Images of a sequence under a corruption, each a pure function of (seed, corruption, severity,
    its place in the sequence) whatever process makes it.

    rows: places in `images`; severities: of each of them.
    """

    def __init__(
        self,
        images: Sequence[Any],
        name: str,
        seed: int,
        rows: Sequence[int] | np.ndarray,
        severities: Sequence[int] | np.ndarray,
    ) -> None:
        super().__init__(len(rows))
        self.images, self.name, self.seed = images, name, seed
        self.rows, self.severities = np.asarray(rows), np.asarray(severities)

    def _read(self, index: int) -> Any:
        row, severity = int(self.rows[index]), int(self.severities[index])
        words = (_DRAWN, NAMES.index(self.name), severity, self.seed, row)
        rng = np.random.default_rng(np.random.SeedSequence(words))
        return corrupt(self.images[row], self.name, severity, rng)

    def identity(self) -> str | None:
        """That of the images, the corruption and the seed."""
        of = getattr(self.images, "identity", lambda: None)()
        if of is None:
            return None
        total = hashlib.sha256(f"{of} {self.name} {self.seed} {_VERSION}".encode())
        if self.name == "frost":
            total.update(b"".join(file_states(weather.photographs())))
        total.update(np.stack([self.rows, self.severities]).astype(np.int64).tobytes())
        return total.hexdigest()

    def where(self, index: int) -> str:
        row = int(self.rows[index])
        place = self.images.where(row) if isinstance(self.images, StoredImages) else f"image {row}"
        return f"{place} ({self.name} {self.severities[index]})"

    def take(self, rows: Sequence[int]) -> CorruptedImages:
        places = list(rows)
        return CorruptedImages(
            self.images, self.name, self.seed, self.rows[places], self.severities[places]
        )


def corrupted(
    dataset: ImageDataset, by: Corruption, *, seed: int = 0, imagenet: bool = False
) -> ImageDataset:
    """A test set under a corruption: at one severity, or at all five, one after the other, whose
    accuracy is then the mean over severities; groups are then the severities.

    seed: decides all that is drawn; imagenet: see Corrupted.
    Errors: InputError for a split that is no test split, an unknown corruption, images that are
    already transformed or parts of others, or where the photographs that `frost` needs are missing.
    """
    if dataset.split != "test":
        raise InputError(
            f"{by}: got the {dataset.split} split of {dataset.name}, expected a test split"
        )
    if by.name not in NAMES:
        raise InputError(f"corruption: got {by.name!r}, expected one of {', '.join(NAMES)}")
    if by.name == "frost":
        weather.photographs()
    if isinstance(dataset, RegionDataset) or isinstance(dataset.images, TensorImages):
        kind = "masked regions" if isinstance(dataset, RegionDataset) else "images in their tensors"
        raise InputError(f"{by}: got {dataset.name}, {kind}, expected pictures")
    severities = SEVERITIES if by.severity is None else (by.severity,)
    if not dataset.classnames and len(severities) > 1:
        raise InputError(f"{by}: got {dataset.name}, captions, expected one severity, as {by}-3")
    rows, times = np.arange(len(dataset)), len(severities)
    other = copy.copy(dataset)
    other.images = CorruptedImages(
        dataset.images, by.name, seed, np.tile(rows, times), np.repeat(severities, len(dataset))
    )
    other.labels = dataset.labels.repeat(times)
    other.captions = None if dataset.captions is None else dataset.captions * times
    spoken = str(by).replace("-", " ")
    other.name = f"{dataset.name} ({spoken})"
    other.corrupted = Corrupted(by, f"{dataset.name} (corrupted)", imagenet)
    if by.severity is None:
        by_severity(other, np.repeat(severities, len(dataset)))
    return other


def by_severity(dataset: ImageDataset, severities: np.ndarray) -> None:
    """Make the severities (1 to 5, of each image) the groups of a data set."""
    import torch

    dataset.groups = torch.as_tensor(severities - 1, dtype=torch.long)
    dataset.group_names = [f"severity {severity}" for severity in SEVERITIES]
    dataset.metrics = ("each-group",)

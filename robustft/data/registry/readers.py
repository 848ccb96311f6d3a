"""One reader a layout: from a Request to the images of that split.

A module of one's own adds one by `READERS["my-layout"] = read_my_layout`.
"""

from __future__ import annotations

from collections.abc import Callable

from robustft.data.datasets import ImageDataset, PairDataset
from robustft.data.registry import (
    breeds,
    cifar,
    imagenet,
    imagenet_c,
    pairs,
    plain,
    regions,
    wilds,
    zero_shot,
)
from robustft.data.registry.request import Request

READERS: dict[str, Callable[[Request], ImageDataset | PairDataset]] = {
    "class-folders": plain.read_class_folders,
    "imagenet": imagenet.read_imagenet,
    "imagenet-c": imagenet_c.read_imagenet_c,
    "objectnet": imagenet.read_objectnet,
    "breeds": breeds.read_breeds,
    "cifar10": cifar.read_cifar10,
    "cifar10.1": cifar.read_cifar10_1,
    "cifar10.2": cifar.read_cifar10_2,
    "stl10": cifar.read_stl10,
    "zero-shot": zero_shot.read_zero_shot,
    "fgvc-aircraft": zero_shot.read_aircraft,
    "iwildcam": wilds.read_iwildcam,
    "fmow": wilds.read_fmow,
    "regions": regions.read_regions,
    "karpathy": pairs.read_karpathy,
    "captions": pairs.read_captions,
    "pairs": pairs.read_pairs,
    "pairs-or-urls": pairs.read_urls,
}

"""One reader a layout: from a Request to the images of that split.

A module of one's own adds one by `READERS["my-layout"] = read_my_layout`.
"""

from __future__ import annotations

from collections.abc import Callable

from robustft.data.datasets import ImageDataset, PairDataset
from robustft.data.registry import imagenet, plain
from robustft.data.registry.request import Request

READERS: dict[str, Callable[[Request], ImageDataset | PairDataset]] = {
    "class-folders": plain.read_class_folders,
    "imagenet": imagenet.read_imagenet,
    "objectnet": imagenet.read_objectnet,
}

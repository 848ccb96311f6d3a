"""ImageNet-C as it is released: folders of severities, in them ImageNet's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robustft.data.corruptions.apply import by_severity
from robustft.data.corruptions.names import NAMES, SEVERITIES, Corrupted, Corruption
from robustft.data.datasets import ImageDataset
from robustft.data.images import FileImages
from robustft.data.registry.files import labelled_images
from robustft.data.registry.imagenet import imagenet_classes, wnid_folders
from robustft.data.registry.request import Request
from robustft.errors import InputError


def read_imagenet_c(request: Request) -> ImageDataset:
    """place/<severity>/<wnid>/<image>, severities 1 to 5: one set, whose accuracy is the mean over
    severities, which are its groups. corruption: which one it is."""
    name = str(request.options.get("corruption"))
    if name not in NAMES:
        raise InputError(f"{request.spec}: got the corruption {name!r}, expected one of {NAMES}")
    there = [level for level in SEVERITIES if (request.place / str(level)).is_dir()]
    if len(there) < len(SEVERITIES) and not request.partial:
        missing = next(level for level in SEVERITIES if level not in there)
        raise InputError(
            f"{request.spec}: no severity {missing} in {request.place}, expected folders 1 to 5; "
            "is an archive half unpacked?"
        )
    paths: list[Path] = []
    labels: list[int] = []
    severities: list[int] = []
    for level in there:
        folder = request.place / str(level)
        files, own, _ = labelled_images(folder, wnid_folders(request, folder))
        paths += files
        labels += own
        severities += [level] * len(files)
    space, occurring = imagenet_classes(), sorted(set(labels))
    dataset = ImageDataset(
        FileImages(paths),
        labels,
        classnames=space.names,
        classes=space.classes,
        name=request.display,
        split=request.split,
        class_subset=None if len(occurring) == len(space.classes) else occurring,
    )
    dataset.corrupted = Corrupted(Corruption(name), "ImageNet-C", imagenet=True)
    by_severity(dataset, np.array(severities))
    return dataset

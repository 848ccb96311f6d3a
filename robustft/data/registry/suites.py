"""Several registered sets under one name, with their roles."""

from __future__ import annotations

from robustft.data.corruptions.names import NAMES
from robustft.errors import InputError

Suite = dict[str, tuple[str, ...]]  # role → names of sets

_TEN = (
    "caltech101",
    "flowers102",
    "food101",
    "sun397",
    "dtd",
    "fgvc-aircraft",
    "stanford-cars",
    "oxford-pets",
    "eurosat",
    "ucf101",
)

SUITES: dict[str, Suite] = {
    "imagenet": {
        "id": ("imagenet",),
        "ood": ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch", "objectnet"),
    },
    "imagenet-c": {
        "id": ("imagenet",),
        "ood": tuple(f"imagenet-c-{corruption}" for corruption in NAMES),
    },
    "entity30": {"id": ("entity30",), "ood": ("entity30-target",)},
    "iwildcam": {"id": ("iwildcam",), "ood": ("iwildcam-ood",)},
    "fmow": {"id": ("fmow",), "ood": ("fmow-ood",)},
    "cifar10": {"id": ("cifar10",), "ood": ("cifar10.1", "cifar10.2", "stl10")},
    "zero-shot": {"forgetting": _TEN},
    "retrieval": {"id": ("coco",), "ood": ("flickr30k",)},
    "segmentation": {"forgetting": ("ade20k-150", "pascal-context-59", "voc2012-20")},
}


def suite(name: str) -> Suite:
    """The sets of a suite by role; a prefix `partial:` goes to each of them.

    Errors: InputError for an unknown name.
    """
    prefix = "partial:" if name.startswith("partial:") else ""
    found = SUITES.get(name.removeprefix(prefix))
    if found is None:
        raise InputError(f"--suite: got {name!r}, expected one of {', '.join(SUITES)}")
    return {role: tuple(prefix + one for one in sets) for role, sets in found.items()}

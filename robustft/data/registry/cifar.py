"""CIFAR-10, 10.1, 10.2 and STL-10: small images in a few arrays, under CIFAR-10's class names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robustft.data.datasets import ImageDataset
from robustft.data.registry.request import Request
from robustft.data.unpickle import read_arrays
from robustft.errors import InputError

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_AS_CIFAR = {"car": "automobile"}  # what STL-10 calls otherwise
_STL_SIDE = 96


def read_cifar10(request: Request) -> ImageDataset:
    """place/data_batch_1 ... 5 and place/test_batch, pickles of rows of 3 × 32 × 32 bytes."""
    train = [f"data_batch_{number}" for number in range(1, 6)]
    names = train if request.split == "train" else ["test_batch"]
    missing = [name for name in names if not (request.place / name).is_file()]
    if missing:
        raise InputError(f"{request.spec}: no {', '.join(missing)} in {request.place}")
    batches = [read_arrays(request.place / name) for name in names]
    rows = np.concatenate([_get(batch, "data", request.place) for batch in batches])
    labels = np.concatenate([_get(batch, "labels", request.place) for batch in batches])
    if rows.ndim != 2 or rows.shape[1] != 3072:
        raise InputError(f"{request.place}: got rows of {rows.shape[1:]}, expected 3,072 bytes")
    return _dataset(request, rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)


def read_cifar10_1(request: Request) -> ImageDataset:
    """cifar10.1_v6_data.npy [N, 32, 32, 3] and cifar10.1_v6_labels.npy beside it."""
    beside = request.place.with_name(request.place.name.replace("_data", "_labels"))
    return _dataset(request, _plain(request.place), _plain(beside))


def read_cifar10_2(request: Request) -> ImageDataset:
    """cifar102_test.npy: a pickled dictionary with "images" and "labels"."""
    found = read_arrays(request.place, npy=True)
    images, labels = (np.asarray(_get(found, key, request.place)) for key in ("images", "labels"))
    return _dataset(request, images, labels)


def read_stl10(request: Request) -> ImageDataset:
    """test_X.bin, N × 3 × 96 × 96 bytes column by column, and test_y.bin, 1 to 10; "monkey" is left
    out, which CIFAR-10 does not have."""
    names = _text(request.place / "class_names.txt").split()
    pixels = _bytes(request.place / "test_X.bin").reshape(-1, 3, _STL_SIDE, _STL_SIDE)
    own = _bytes(request.place / "test_y.bin").astype(np.int64) - 1
    if len(own) != len(pixels):
        raise InputError(f"{request.place}: got {len(own)} labels for {len(pixels)} images")
    known = [_AS_CIFAR.get(name, name) for name in names]
    label_of = np.array([CLASSES.index(name) if name in CLASSES else -1 for name in known])
    labels = label_of[own]
    rows = labels >= 0
    return _dataset(request, pixels[rows].transpose(0, 3, 2, 1), labels[rows])


def _dataset(request: Request, pixels: np.ndarray, labels: Any) -> ImageDataset:
    present = sorted(set(np.asarray(labels).tolist()))
    return ImageDataset(
        np.ascontiguousarray(pixels),
        np.asarray(labels, dtype=np.int64),
        classnames=CLASSES,
        name=request.display,
        split=request.split,
        class_subset=None if len(present) == len(CLASSES) else present,
    )


def _get(found: dict[str, Any], key: str, path: Path) -> Any:
    if key not in found:
        raise InputError(f"{path}: got {', '.join(map(str, found))}, expected {key!r} among them")
    return found[key]


def _plain(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not an array of numbers: {error}") from error
    return found


def _bytes(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"no file {path}")
    found = np.fromfile(path, dtype=np.uint8)
    size = 3 * _STL_SIDE**2 if path.name.endswith("X.bin") else 1
    if len(found) % size:
        raise InputError(
            f"{path}: got {len(found):,} bytes, expected a multiple of {size:,}; is it cut off?"
        )
    return found


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"no file {path}")
    return path.read_text(encoding="utf-8")

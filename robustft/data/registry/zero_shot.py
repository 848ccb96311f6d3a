"""The ten sets of zero-shot tables, in CoOp's layout or torchvision's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robustft.data.datasets import ImageDataset
from robustft.data.images import FileImages
from robustft.data.registry.files import only_present
from robustft.data.registry.request import Request
from robustft.data.text_files import filled_lines
from robustft.errors import InputError
from robustft.optional import require

_WITHOUT_SPLITS = ("Caltech101", "SUN397", "EuroSAT")
_TORCHVISION = (
    *_WITHOUT_SPLITS,
    *("DTD", "FGVCAircraft", "Flowers102", "Food101", "OxfordIIITPet", "StanfordCars"),
)


def read_zero_shot(request: Request) -> ImageDataset:
    """CoOp's split file, if that was found, or torchvision's data set at the place.

    images_in: the folder of images beside the split file; torchvision: the data set's class, its
    root `depth` folders above the place; names: what classes are called instead.
    """
    if request.place.suffix == ".json":
        return _of_coop(request)
    return _of_torchvision(request)


def read_aircraft(request: Request) -> ImageDataset:
    """images_variant_<split>.txt, "<image> <variant>" a line, beside variants.txt and images/."""
    home = request.place.parent
    variants = [line for _, line in filled_lines(home / "variants.txt")]
    label_of = {name: label for label, name in enumerate(variants)}
    paths, labels = [], []
    for number, line in filled_lines(request.place):
        image, _, variant = line.partition(" ")
        if variant not in label_of:
            raise InputError(
                f"{request.place}, line {number}: got the variant {variant!r}, expected one of "
                "variants.txt"
            )
        paths.append(home / "images" / f"{image}.jpg")
        labels.append(label_of[variant])
    return _dataset(request, paths, labels, variants)


def _of_coop(request: Request) -> ImageDataset:
    """{"train": [[path, label, class name], ...], "val": ..., "test": ...}."""
    try:
        found = json.loads(request.place.read_text(encoding="utf-8"))
        every = [row for rows in found.values() for row in rows]
        name_of = {int(label): str(name) for _, label, name in every}
        rows = [(str(path), int(label)) for path, label, _ in found[request.split]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{request.place}: expected lists train, val and test of [path, label, class name], "
            f"not so: {type(error).__name__}: {error}"
        ) from error
    if sorted(name_of) != list(range(len(name_of))):
        raise InputError(
            f"{request.place}: got {len(name_of)} labels up to {max(name_of, default=-1)}, "
            f"expected 0 to {len(name_of) - 1}"
        )
    images = request.place.parent / str(request.options.get("images_in", ""))
    if not images.is_dir():
        raise InputError(f"{request.spec}: got {request.place} without its images in {images}")
    paths = [_inside(images, path, request.place) for path, _ in rows]
    names = [name_of[label] for label in range(len(name_of))]
    return _dataset(request, paths, [label for _, label in rows], names)


def _of_torchvision(request: Request) -> ImageDataset:
    """torchvision's own reading of its layout (download=False): files, labels and class names."""
    named = str(request.options.get("torchvision"))
    if named not in _TORCHVISION:
        raise InputError(
            f"{request.spec}: got {request.place} and torchvision: {named}, expected a split file, "
            f"or one of {', '.join(_TORCHVISION)}"
        )
    kind = getattr(require("torchvision.datasets", extra="openclip"), named)
    root = request.place.parents[int(request.options.get("depth", 1)) - 1]
    split = {"split": request.split} if named not in _WITHOUT_SPLITS else {}
    if named == "OxfordIIITPet" and request.split == "train":
        split = {"split": "trainval"}
    try:
        found = kind(str(root), download=False, **split)
        paths, labels = _files_of(found)
    except ImportError:
        raise
    except Exception as error:  # torchvision: RuntimeError, and whatever a cut-off file causes
        text = " ".join(str(error).split())
        raise InputError(
            f"{request.spec}: torchvision.datasets.{named} does not read {root}: {text}"
        ) from error
    names = getattr(found, "classes", None) or found.categories
    return _dataset(request, paths, labels, list(names))


def _files_of(found: Any) -> tuple[list[Path], list[int]]:
    """Image files and labels of one of torchvision's data sets; each keeps them in its own way."""
    samples = getattr(found, "samples", None) or getattr(found, "_samples", None)
    if samples is not None:
        return [Path(path) for path, _ in samples], [int(label) for _, label in samples]
    if hasattr(found, "categories"):  # Caltech101: a category and a number
        home = Path(found.root) / "101_ObjectCategories"
        numbered = zip(found.y, found.index, strict=True)
        paths = [home / found.categories[y] / f"image_{i:04d}.jpg" for y, i in numbered]
        return paths, list(found.y)
    files = getattr(found, "_image_files", None) or found._images
    pairs = sorted(zip(map(str, files), map(int, found._labels), strict=True))
    return [Path(path) for path, _ in pairs], [label for _, label in pairs]


def _dataset(
    request: Request, paths: list[Path], labels: list[int], names: list[str]
) -> ImageDataset:
    kept = only_present(request, paths)
    called = request.options.get("names", {})
    found = [labels[i] for i in kept]
    present = sorted(set(found))
    return ImageDataset(
        FileImages([paths[i] for i in kept]),
        found,
        classnames=[called.get(name, name).replace("_", " ") for name in names],
        classes=names if len(set(names)) == len(names) else None,
        name=request.display,
        split=request.split,
        class_subset=None if len(present) == len(names) else present,
    )


def _inside(folder: Path, path: str, source: Path) -> Path:
    """A path of a list, which must not lead out of the data set."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise InputError(f"{source}: got the path {path!r}, expected one below {folder}")
    return folder / path

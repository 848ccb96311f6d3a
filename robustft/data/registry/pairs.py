"""Images with captions and image–caption pairs: Karpathy's splits of COCO and Flickr30k, tables,
and tar shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robustft.data.captioned import CaptionedDataset, together
from robustft.data.datasets import PairDataset
from robustft.data.images import FileImages
from robustft.data.registry.files import only_present
from robustft.data.registry.request import Request
from robustft.data.shards import load_shards
from robustft.data.table_rows import is_table
from robustft.data.tables import load_captions, load_pairs
from robustft.errors import InputError

_TRAINING = ("train", "restval")  # what Karpathy's training data are


def read_karpathy(request: Request) -> CaptionedDataset:
    """{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}, ...]}, ...]}.

    images_in: folders beside the file in which images may lie, the first that exists;
    captions_each: how many of an image's captions are used, its first ones.
    """
    splits = _TRAINING if request.split == "train" else (request.split,)
    try:
        found = json.loads(request.place.read_text(encoding="utf-8"))["images"]
        rows = [
            (_path_of(image), [str(sentence["raw"]) for sentence in image["sentences"]])
            for image in found
            if image["split"] in splits
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{request.place}: expected Karpathy's list of images with sentences, not so: "
            f"{type(error).__name__}: {error}"
        ) from error
    home = _images_folder(request, Path(rows[0][0]).parent if rows else Path())
    outside = next((p for p, _ in rows if Path(p).is_absolute() or ".." in Path(p).parts), None)
    if outside is not None:
        raise InputError(f"{request.place}: got the path {outside!r}, expected one below {home}")
    kept = [rows[i] for i in only_present(request, [home / path for path, _ in rows])]
    # An image without a sentence has an empty one, which is then counted as left out.
    said = ((path, text) for path, texts in kept for text in texts or [""])
    images, texts, owners, listed = together(said, request.place, most=_most(request))
    return CaptionedDataset(
        FileImages([home / path for path in images]),
        texts,
        owners,
        name=request.display,
        split=request.split,
        listed=listed,
    )


def read_captions(request: Request) -> CaptionedDataset:
    """A .csv or .tsv table with path and caption (or open_clip's filepath and title), any number of
    rows an image, or a folder of tar shards, with one caption a line of an image's text.

    captions_each: as for `read_karpathy`.
    """
    if is_table(request.place):
        found = load_captions(request.place, request.split, most=_most(request))
        found.name = request.display
        return found
    if not request.place.is_dir():
        raise InputError(f"{request.spec}: got {request.place}, expected a table or a folder")
    held = load_shards(request.place, request.display)
    said = (
        (str(i), line)
        for i in range(len(held))
        for line in held.captions[i].splitlines()
        if line.strip()
    )
    kept, texts, owners, listed = together(said, request.place, most=_most(request))
    return CaptionedDataset(
        held.subset([int(i) for i in kept]).images,
        texts,
        owners,
        name=request.display,
        split=request.split,
        listed=listed,
    )


def read_pairs(request: Request) -> PairDataset:
    """A .csv or .tsv table with path and caption (or open_clip's filepath and title), or a folder
    of tar shards."""
    if request.place.is_dir():
        return load_shards(request.place, request.display)
    if not is_table(request.place):
        raise InputError(f"{request.spec}: got {request.place}, expected a table or a folder")
    pairs = load_pairs(request.place)
    pairs.name = request.display
    return pairs


def read_urls(request: Request) -> PairDataset:
    """As `read_pairs`; a table of captions and URLs, as CC3M is given out, is explained."""
    if request.place.name.startswith("Train_GCC"):
        raise InputError(
            f"{request.spec}: {request.place} lists captions and URLs; fetch the images with "
            f"img2dataset (--output_format webdataset) into {request.place.parent}"
        )
    return read_pairs(request)


def _path_of(image: dict[str, Any]) -> str:
    return str(Path(image.get("filepath", "")) / image["filename"])


def _most(request: Request) -> int | None:
    most = request.options.get("captions_each")
    return None if most is None else int(most)


def _images_folder(request: Request, inner: Path) -> Path:
    """The first of the folders that may hold the images, in which there is the folder `inner`."""
    places = [request.place.parent / str(x) for x in request.options.get("images_in", ["."])]
    found = next((place for place in places if (place / inner).is_dir()), None)
    if found is None:
        raise InputError(
            f"{request.spec}: got {request.place} without its images, looked for "
            f"{', '.join(str(place / inner) for place in places)}"
        )
    return found

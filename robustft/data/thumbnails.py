"""Small pictures for people to look at, and a fixed choice of which.

The choice is a function of a data set's name alone: not its first images, which are often of one
class, and the same in every run, so that two reports show the same images.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np

from robustft.optional import require

SIDE = 96
"""Pixels of the longer side, at most."""

# WebP's chroma has half the resolution; pictures as small as these show it where it is coloured.
_ENCODINGS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "JPEG": {"quality": 80, "optimize": True},
    "WEBP": {"quality": 80, "method": 4},
}


def thumbnail(picture: Any) -> bytes:
    """A PIL image of at most SIDE × SIDE pixels, in proportion and never enlarged, as PNG, JPEG or
    WebP, whichever is smallest."""
    image = require("PIL.Image", extra="openclip")
    features = require("PIL.features", extra="openclip")
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), image.Resampling.LANCZOS)
    found = []
    for name, options in _ENCODINGS.items():
        if name == "WEBP" and not features.check("webp"):
            continue
        held = io.BytesIO()
        small.save(held, name, **options)
        found.append(held.getvalue())
    return min(found, key=len)


def fixed_order(name: str, rows: np.ndarray) -> np.ndarray:
    """Rows of a data set, int [N], in an order that depends on `name` and on them alone."""
    key = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    # The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every row gets a key.
    mixed = rows.astype(np.uint64) + np.uint64(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    order: np.ndarray = rows[np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")]
    return order

"""Reading an image file as 8-bit RGB, upright.

Formats: PNG, JPEG, BMP, WebP, GIF, TIFF and PPM/PGM, by content and not by name; no other decoder
of Pillow's is tried (EPS would start Ghostscript). Grey levels of more than 8 bits are scaled:
v · 255 / (2^bits − 1), rounded. The orientation that EXIF states is applied.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np

from robustft.errors import InputError
from robustft.optional import require

IMAGE_SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"]
)
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262  # TIFF 6.0, section 8
_WHITE_IS_ZERO = 0
_ORIENTATION = 274


class UnreadableImageError(InputError):
    """An image file that is missing, damaged, or of a kind that is not read."""


def read_picture(path: Path, *, file: Any = None) -> Any:
    """The image as PIL RGB; file: an open one that is read instead, which `path` names in messages.
    UnreadableImageError, naming the file, if that cannot be had."""
    image = require("PIL.Image", extra="openclip")
    try:
        with image.open(file or path, formats=FORMATS) as opened:
            return _eight_bits(_upright(opened), opened).convert("RGB")
    except FileNotFoundError as error:
        raise UnreadableImageError(f"image file not found: {path}") from error
    except (MemoryError, ImportError):
        raise
    except OSError as error:
        if error.errno not in (None, errno.EACCES, errno.EISDIR):  # the machine's, not the file's
            raise InputError(f"cannot read the image {path}: {error.strerror}") from error
        raise _unreadable(path, error) from error
    except Exception as error:  # Pillow reports damage as many kinds of error, by format
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UnreadableImageError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if type(error).__name__ == "UnidentifiedImageError":  # its own text repeats the path
        reason = f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
    return UnreadableImageError(f"cannot read the image {path}: {reason}")


def _upright(opened: Any) -> Any:
    opened.load()  # a damaged image must not pass for one with damaged EXIF
    try:
        if opened.getexif().get(_ORIENTATION, 1) == 1:
            return opened
        return require("PIL.ImageOps", extra="openclip").exif_transpose(opened)
    except Exception:  # EXIF that cannot be read states no orientation
        return opened


def _eight_bits(picture: Any, opened: Any) -> Any:
    """`picture` with grey levels in 8 bits; `opened` tells what the file holds."""
    if picture.mode == "F" or (picture.mode == "I" and opened.format == "TIFF"):
        raise InputError(
            "its pixels are of 32 bits, floats or signed numbers, whose range is not stated; "
            "expected 8 or 16 bits"
        )
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture
    bits, inverted = 16, False  # of PNG and PGM; Pillow brings any PGM to 16 bits
    if opened.format == "TIFF":
        bits = int(opened.tag_v2.get(_TIFF_BITS, (16,))[0])
        inverted = opened.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    levels = np.asarray(picture).astype(np.float64) * (255 / (2**bits - 1))
    grey = np.rint(levels).clip(0, 255).astype(np.uint8)
    return require("PIL.Image", extra="openclip").fromarray(255 - grey if inverted else grey)

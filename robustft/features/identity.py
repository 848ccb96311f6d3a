"""What features are a function of, as JSON: equal descriptions, equal features.

None where that cannot be told: then nothing is kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from robustft.data.transforms import is_deterministic
from robustft.models import tensor_files

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PACKAGES = ("torch", "torchvision", "pillow", "open_clip_torch", "timm", "transformers")


def of_model(model: nn.Module, device: torch.device) -> dict[str, Any]:
    """Weights, architecture, the numbers' precision here, and the packages that compute."""
    autocast = torch.is_autocast_enabled(device.type)
    return {
        "model": type(model).__name__,
        "weights": tensor_files.digest(model.state_dict()),
        "architecture": _hash([str(model)]),
        "device": device.type,
        "precision": str(torch.get_autocast_dtype(device.type)) if autocast else "float32",
        "products": torch.get_float32_matmul_precision(),
        "packages": [_version(name) for name in _PACKAGES],
    }


def of_texts(texts: Iterable[str]) -> str:
    """A hash of texts in their order."""
    return _hash(texts)


def of_tokenizer(tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    """A tokenizer, by its kind and by what it makes of the first of the texts."""
    some = tokenizer([*texts[:64], "a photo of a cat, 1 µm & Ω."])
    return {"kind": type(tokenizer).__qualname__, "some": tensor_files.digest({"tokens": some})}


def of_images(dataset: Any) -> dict[str, Any] | None:
    """The images of a data set and their transform."""
    identity = getattr(dataset.images, "identity", None)
    images = None if identity is None else identity()
    transform = of_transform(dataset.transform)
    return None if images is None or transform is None else {"images": images, **transform}


def of_transform(transform: Any) -> dict[str, Any] | None:
    """A transform without random parts, step by step with their settings."""
    if not is_deterministic(transform):
        return None
    described = []
    for step in getattr(transform, "transforms", [transform]):
        text = repr(step)
        settings = {name: repr(value) for name, value in sorted(vars_of(step).items())}
        if getattr(step, "deterministic", False) and _ADDRESS.search(f"{text} {settings}"):
            return None  # one of the caller's own, which does not say what it does
        described.append(f"{type(step).__qualname__} {text} {settings}")
    return {"transform": [_ADDRESS.sub("", line) for line in described]}


def vars_of(step: Any) -> dict[str, Any]:
    """The settings of a step; none of a function."""
    return {} if callable(getattr(step, "__code__", None)) else dict(getattr(step, "__dict__", {}))


def _hash(texts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        total.update(len(raw).to_bytes(8, "little") + raw)
    return total.hexdigest()


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package

"""What is known of kernels on cards, in memory and on disk.

One file for each card and each state of what a kernel's numbers hang on: its sources, the versions
of torch, Triton and CuPy, the driver. When one of those changes, nothing is known.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustft import cache, locks
from robustft.atomic import replacing
from robustft.backends import card
from robustft.backends.simulation import emulating, interpreting

#: In the place of a backend: what `robustft tune` found (tuned.py).
TUNED = "tuned"
#: Seconds that one process waits for another that proves the same kernel.
_PATIENCE = 300
_SHARED = ("robustft.backends.proof", "robustft.backends.search")  # of all backends of a card
_SOURCES = {
    "triton": ("robustft.kernels",),
    "cuda": ("robustft.backends.cuda",),
    TUNED: ("robustft.kernels", "robustft.backends.cuda"),
}


class Verdict(NamedTuple):
    """passed: every check was; why: the first that was not. faster: the reference's time over the
    kernel's, or None where it was not measured."""

    passed: bool
    why: str = ""
    faster: float | None = None

    @property
    def trusted(self) -> bool:
        """Whether `auto` takes the kernel."""
        return self.passed and (self.faster is None or self.faster >= 1)

    def said(self) -> str:
        """In words."""
        if not self.passed:
            return f"failed: {self.why}"
        if self.faster is None:
            return "passed"
        used = "" if self.trusted else ", so auto does not take it"
        return f"passed, {self.faster:.2f} × the reference's speed{used}"


def name(op: str, backend: str, dtype: torch.dtype) -> str:
    """Of an entry."""
    return f"{op} {backend} {str(dtype).removeprefix('torch.')}"


def read(backend: str, device: torch.device) -> dict[str, Verdict]:
    """All that is known of a backend's kernels on this card; nothing where the file is damaged."""
    try:
        entries = json.loads(path(backend, device).read_text(encoding="utf-8"))["verdicts"]
        return {entry: Verdict(bool(v[0]), str(v[1]), v[2]) for entry, v in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}


def write(backend: str, device: torch.device, entry: str, verdict: Verdict) -> None:
    """Add one. What cannot be written is known to this process alone."""
    target = path(backend, device)
    about = {"key": key(backend, device), "verdicts": read(backend, device) | {entry: verdict}}
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")


@contextlib.contextmanager
def one_at_a_time(backend: str, device: torch.device) -> Iterator[None]:
    """The processes of a job prove a kernel once: the others wait, and then know."""
    file = path(backend, device)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # Timeout is one: then each proves for itself
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.held(file.with_name(f"{file.name}.lock"), wait=_PATIENCE))
        yield


def path(backend: str, device: torch.device) -> Path:
    """The file that what is known of a backend on this card is in."""
    text = json.dumps(key(backend, device), sort_keys=True).encode()
    return cache.folder() / "verdicts" / f"{hashlib.sha256(text).hexdigest()[:20]}.json"


def key(backend: str, device: torch.device) -> dict[str, Any]:
    """What the numbers hang on."""
    return {
        "backend": backend,
        "sources": _sources(backend),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "packages": [_version(package) for package in _packages()],
        **_card(device),
    }


def _card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        simulated = "interpreter" if interpreting() else "emulator" if emulating() else "none"
        return {"card": f"{simulated} on {device.type}"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "card": properties.name,
        "capability": [properties.major, properties.minor],
        "driver": _driver(),
    }


@functools.cache
def _driver() -> str:
    driver = Path("/proc/driver/nvidia/version")
    try:
        return driver.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return os.environ.get("CUDA_VERSION", "unknown")


@functools.cache
def _sources(backend: str) -> str:
    """A hash of all files that a backend's kernels are made of, and of what asks them."""
    digest = hashlib.sha256()
    for file in source_files(backend):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def source_files(backend: str) -> list[Path]:
    """Those files."""
    specs = (importlib.util.find_spec(p) for p in (*_SOURCES.get(backend, ()), *_SHARED))
    roots = [root for spec in specs if spec for root in spec.submodule_search_locations or ()]
    if backend != "triton":
        roots.append(str(card.sources()))
    files = (file for root in roots for file in sorted(Path(root).rglob("*")))
    return [file for file in files if file.suffix in (".py", ".cu", ".cuh")]


@functools.cache
def _packages() -> tuple[str, ...]:
    """What is installed of what compiles kernels."""
    known = (d.metadata["Name"] or "" for d in importlib.metadata.distributions())
    return tuple(
        sorted({n for n in known if n == "triton" or n.startswith(("cupy", "pytorch-tri"))})
    )


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"

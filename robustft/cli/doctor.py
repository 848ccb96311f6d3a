"""`robustft doctor`: what is installed, which backends run here, and why the others do not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from robustft import __version__, cache
from robustft.cli.options import setting
from robustft.errors import InputError

_PACKAGES = (
    "torch",
    "numpy",
    "open_clip_torch",
    "torchvision",
    "timm",
    "transformers",
    "accelerate",
    "safetensors",
    "scikit-learn",
    "matplotlib",
    "triton",
    "cupy-cuda13x",
)


@dataclass(frozen=True)
class DoctorOptions:
    """List versions, devices and backends, with the reason where one does not run, and what data
    sets a folder holds."""

    data_location: Path | None = setting(
        None, "Say which registered data sets lie below this folder, and what is missing where."
    )
    data_module: str | None = setting(
        None, "With --data-location: a file or module of data sets of one's own (docs/data.md)."
    )


def doctor(options: DoctorOptions) -> None:
    """Carry out `robustft doctor`."""
    if options.data_module is not None and options.data_location is None:
        raise InputError("doctor: got --data-module without --data-location, expected both")
    print(f"robustft {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print("\npackages", flush=True)
    for package in _PACKAGES:
        print(f"  {package:18} {_version(package)}", flush=True)
    from robustft import backends

    print(f"\nprocessors: {_processors()}")
    print(f"CUDA device: {_cuda_device()}")
    print("\nbackends")
    for name, status in backends.available().items():
        state = "runs" if status.runs else "does not run"
        print(f"  {name:10} {state:13} {status.detail if status.runs else status.reason}")
    print("\nkernels (op: backends that have one; auto takes the fastest that runs)")
    for op, modules in backends.IMPLEMENTATIONS.items():
        print(f"  {op:10} {', '.join(modules)}")
    _verdicts()
    _features()
    if options.data_location is not None:
        _data(options.data_location, options.data_module)


def _data(location: Path, module: str | None) -> None:
    from robustft.cli import data, roots

    if module is not None:
        roots.bring(module)
    print()
    data.print_found(location)


def _verdicts() -> None:
    """What is known of a card's kernels here, where there is a card or what plays one."""
    from robustft import backends

    running = [name for name in backends.card.KERNELS if backends.status(name).runs]
    if not running:
        return
    import torch

    from robustft.backends.proof import verdicts

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("\nproofs (auto asks a kernel at its first use; robustft verify asks all of them now)")
    for name in running:
        known = verdicts.read(name, device)
        for entry, verdict in sorted(known.items()):
            print(f"  {entry:26} {verdict.said()}")
        if not known:
            print(f"  {name}: none yet")
    from robustft.backends.proof import tuned

    print("\ntuned (auto goes by it; robustft tune measures)")
    measured = tuned.read(device)
    for entry, lines in sorted(measured.lines.items()):
        print(f"  {entry:26} {tuned.said(lines)}")
    for entry, options in sorted(measured.tiles.items()):
        print(f"  {entry:26} {' '.join(f'{key}={value}' for key, value in options.items())}")
    if not measured.lines:
        print("  nothing yet")


def _features() -> None:
    """Where features are kept by default, and what they take."""
    root = cache.features()
    sizes = [path.stat().st_size for path in root.rglob("*.safetensors")]
    print(f"\nfeature store: {root}, {sum(sizes) / 1e6:.1f} MB (robustft embed --clear empties it)")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processors() -> str:
    asked = os.environ.get("OMP_NUM_THREADS")
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{count}" + f" (OMP_NUM_THREADS={asked})" * (asked is not None)


def _cuda_device() -> str:
    from robustft.backends import card

    if not card.present():
        return "none"
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor})"

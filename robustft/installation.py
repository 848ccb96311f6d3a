"""Whether this copy of robustft was built, or is a source folder that Python came across."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def without_kernels() -> str | None:
    """One line where robustft was installed without the native module, as pip does where nothing
    compiles; None where it is there, and in a clone that is not built, which `not_built` names."""
    if importlib.util.find_spec("robustft._native") is not None or not_built() is not None:
        return None
    return (
        "robustft was installed without its C++ kernels, as nothing compiled them: ops on the CPU "
        "run in plain PyTorch; where g++ or clang is, install it again with pip's options "
        "--force-reinstall --no-deps --no-cache-dir"
    )


def not_built() -> str | None:
    """One line where Python took a source folder without the native module, as it does when it is
    started in the root of a clone; None otherwise."""
    if importlib.util.find_spec("robustft._native") is not None:
        return None
    root = _PACKAGE.parent
    if not (root / "pyproject.toml").is_file():
        return None
    try:
        found = importlib.metadata.distribution("robustft").locate_file("robustft")
        installed = Path(str(found)).resolve()
    except importlib.metadata.PackageNotFoundError:
        installed = _PACKAGE
    if installed != _PACKAGE and installed.is_dir():
        return (
            f"robustft is taken from {root}, which is not built, in place of the one installed in "
            f"{installed.parent}: start Python in another folder, or build here with "
            f"pip install -e '{root}'"
        )
    return f"robustft is taken from {root}, which is not built: pip install -e '{root}'"

"""Optional packages: imported where they are used, and a missing one names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class MissingExtraError(ImportError):
    """A package that an optional part of robustft needs is not installed."""


def require(module: str, *, extra: str) -> Any:
    """Import `module`, or say which extra of robustft brings it.

    Errors: MissingExtraError (an ImportError) when the package itself is absent; an import error
    from inside an installed package passes through unchanged.
    """
    try:
        loaded: ModuleType = importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f"{package} is not installed and this part of robustft needs it: "
            f"pip install 'robustft[{extra}]'"
        ) from error
    return loaded

"""Optional packages: imported where they are used, and a missing one names the extra to install."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname


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
            f"{package} is not installed and this part of robustft needs it: {install_hint(extra)}"
        ) from error
    return loaded


def install_hint(extra: str) -> str:
    """The pip command that adds `extra` to robustft as it was installed: from a folder or a file
    that is still there (pip notes where it came from), else by name."""
    try:
        noted = importlib.metadata.distribution("robustft").read_text("direct_url.json")
        source = json.loads(noted or "{}")
    except (importlib.metadata.PackageNotFoundError, json.JSONDecodeError):
        source = {}
    url = urlparse(str(source.get("url", "")))
    path = url2pathname(url.path)
    if url.scheme != "file" or not Path(path).exists():
        return f"pip install 'robustft[{extra}]'"
    editable = "-e " if source.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}'{path}[{extra}]'"

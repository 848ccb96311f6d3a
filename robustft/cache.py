"""What may be made again: the user's cache folder."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import platformdirs

#: The environment's name of another folder for features.
FEATURES = "ROBUSTFT_FEATURE_STORE"


def place() -> Path:
    """Where that folder is, or would be."""
    return platformdirs.user_cache_path("robustft", appauthor=False)


@functools.cache
def folder() -> Path:
    """The user's cache folder for robustft ($XDG_CACHE_HOME/robustft or ~/.cache/robustft on
    Linux); a temporary one of this process where that cannot be written."""
    root = place()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except OSError:
        return Path(tempfile.mkdtemp(prefix="robustft-"))


def features() -> Path:
    """Where features are kept that nobody names a folder for."""
    named = os.environ.get(FEATURES)
    return Path(named) if named else folder() / "features"

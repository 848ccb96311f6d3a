"""Importing a file or a module of the user's that a flag names."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path

from robustft.errors import InputError


def import_user_module(spec: str, flag: str) -> None:
    """Import `spec`, a .py file or a module's name; it registers what it brings.

    Errors: InputError, naming `flag`, where there is none, or it cannot be imported.
    """
    path = Path(spec)
    try:
        if path.suffix != ".py":
            importlib.import_module(spec)
            return
        if not path.is_file():
            raise InputError(f"{flag}: no file {spec}")
        # A name of its own: two files of one name are two modules, and one is imported once.
        digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
        name = f"robustft_{flag.strip('-').replace('-module', '')}_{path.stem}_{digest}"
        if name in sys.modules:
            return
        found = importlib.util.spec_from_file_location(name, path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        try:
            found.loader.exec_module(module)
        except BaseException:
            with contextlib.suppress(KeyError):
                del sys.modules[name]
            raise
    except InputError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise InputError(f"{flag}: {spec} cannot be imported: {kind}: {error}") from error

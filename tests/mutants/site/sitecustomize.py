"""Python starts with this when the folder is on PYTHONPATH: takes robustft from another tree.

MUTANT_TREE is its root; robustft._native is the file that ROBUSTFT_NATIVE names, if it is set, else
the installed one. Processes that a test starts inherit both variables.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

_TREE = Path(os.environ["MUTANT_TREE"])


class _Finder:
    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name == "robustft._native":
            native = os.environ.get("ROBUSTFT_NATIVE")
            return importlib.util.spec_from_file_location(name, native) if native else None
        parts = name.split(".")
        if parts[0] != "robustft":
            return None
        if parts[:2] == ["robustft", "kernels"]:
            parts = parts[1:]  # kernels/ is installed as robustft.kernels
        at = _TREE.joinpath(*parts)
        if (at / "__init__.py").exists():
            return importlib.util.spec_from_file_location(
                name, at / "__init__.py", submodule_search_locations=[str(at)]
            )
        file = at.with_suffix(".py")
        return importlib.util.spec_from_file_location(name, file) if file.exists() else None


sys.meta_path.insert(0, _Finder())

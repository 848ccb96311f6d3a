"""Python starts with this when the folder is on PYTHONPATH: takes robustft._native from a file.

ROBUSTFT_NATIVE names the file, a build that is not the installed one. Processes that a test starts
inherit both variables.
"""

from __future__ import annotations

import importlib.util
import os
import sys


class _Finder:
    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != "robustft._native":
            return None
        return importlib.util.spec_from_file_location(name, os.environ["ROBUSTFT_NATIVE"])


sys.meta_path.insert(0, _Finder())

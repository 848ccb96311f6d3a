"""The emulator's build script as a module."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMULATOR = Path(__file__).parent / "emulator"
_spec = importlib.util.spec_from_file_location("emulator_build", EMULATOR / "build.py")
builder = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(builder)

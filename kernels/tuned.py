"""Configurations measured on cards: written by `python -m benchmarks tune --write`."""

from __future__ import annotations

from typing import Any

# kernel → ((capability, dtype, largest bucket), options) lines.
LINES: dict[str, tuple[tuple[tuple[int, str, int], dict[str, Any]], ...]] = {}

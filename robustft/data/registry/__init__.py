"""Public data sets as people have them on disk: found, checked and read.

    load.load(parse("imagenet-v2@/data"), "test")

sets/*.yaml hold the facts, in the form that form.py describes; one module a family reads the
layouts; known.py collects them and what users bring; load.py finds a set below a root, in the
first of its places that exists, and compares it with what it should hold; suites.py names several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustft.data.registry.form import DataSet, Part
from robustft.data.registry.known import REGISTRY
from robustft.data.registry.request import Request
from robustft.data.registry.spec import Spec, parse

if TYPE_CHECKING:
    from robustft.data.registry.readers import READERS

__all__ = ["READERS", "REGISTRY", "DataSet", "Part", "Request", "Spec", "parse"]


def __getattr__(name: str) -> Any:
    if name == "READERS":  # which need torch: names of sets are told without it
        from robustft.data.registry import readers

        return readers.READERS
    raise AttributeError(f"module 'robustft.data.registry' has no attribute {name!r}")

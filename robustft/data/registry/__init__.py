"""Public data sets as people have them on disk: found, checked and read.

    load(parse("imagenet-v2@/data"), "test")

sets/*.yaml hold the facts, in the form that form.py describes; one module a family reads the
layouts; known.py collects them and what users bring; load.py finds a set below a root, in the
first of its places that exists, and compares it with what it should hold; suites.py names several.
"""

from __future__ import annotations

from robustft.data.registry.form import DataSet, Part
from robustft.data.registry.known import REGISTRY
from robustft.data.registry.load import load
from robustft.data.registry.readers import READERS
from robustft.data.registry.request import Request
from robustft.data.registry.spec import Spec, parse

__all__ = ["READERS", "REGISTRY", "DataSet", "Part", "Request", "Spec", "load", "parse"]

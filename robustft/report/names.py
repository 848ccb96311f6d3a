"""How methods and data sets are called and ordered in tables and plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = tuple[str, str | None]
"""A method and the fine-tuned method an ensemble is built on (None for a single model)."""

METHODS: dict[str, str] = {
    "zero-shot": "Zero-shot",
    "linear-probe": "LP",
    "ft": "FT",
    "lp-ft": "LP-FT",
    "flyp": "FLYP",
    "wise-ft": "WiSE-FT",
    "ose": "OSE",
    "r-adapter": "R-Adapter",
    "dive": "DiVE",
    "vrf": "VRF",
}
ENSEMBLES = ("wise-ft", "ose", "vrf")
# An ensemble on FT goes by its own name, as in the papers.
_PLAIN_BASES = (None, "ft")


def row_of(record: Mapping[str, Any]) -> Row:
    """The table row a record belongs to; an ensemble on FT and one without a base are the same."""
    base = record.get("base")
    return record["method"], None if base in _PLAIN_BASES else base


def display(row: Row) -> str:
    """("vrf", None) is "VRF", ("vrf", "dive") is "DiVE+VRF"; unknown names stay as they are."""
    method, base = row
    own = METHODS.get(method, method)
    return own if base is None else f"{METHODS.get(base, base)}+{own}"


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Single models and ensembles on FT in the order of METHODS, then ensembles by their base."""
    order = list(METHODS)

    def place(name: str | None) -> int:
        if name is None:
            return -1
        return order.index(name) if name in order else len(order)

    found = list(dict.fromkeys(rows))
    return sorted(
        found, key=lambda row: (row[1] is not None, place(row[1]), place(row[0]), found.index(row))
    )

"""How methods and data sets are called and ordered in tables and plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from robustft.methods import METHODS
from robustft.report.text import readable
from robustft.train.method import GROUPS as METHOD_GROUPS

Row = tuple[str, str | None]
"""A method and the fine-tuned method an ensemble is built on (None for a single model)."""


@dataclass(frozen=True)
class Look:
    """How a method is called and drawn."""

    display: str
    colour: str
    marker: str


_ENSEMBLES = {
    "wise-ft": Look("WiSE-FT", "#0072b2", "o"),
    "ose": Look("OSE", "#d98c00", "s"),
    "calibrated-ose": Look("OSE (calibrated)", "#8f5a00", "s"),
    "lse": Look("LSE", "#b8860b", "v"),
    "calibrated-lse": Look("LSE (calibrated)", "#6e5300", "v"),
    "uniform-soup": Look("Uniform soup", "#56708a", "P"),
    "greedy-soup": Look("Greedy soup", "#2b4560", "P"),
    "post-tpgm": Look("TPGM (after)", "#00454f", "X"),
    "vrf": Look("VRF", "#a3123a", "^"),
}
ENSEMBLES = tuple(_ENSEMBLES)


GROUPS = (*METHOD_GROUPS, "other", "ensembles")
"""What kinds of rows there are, in the order of tables."""


def _looks() -> dict[str, Look]:
    """In the order of tables: methods by their group, then ensembles."""
    order = sorted(METHODS.items(), key=lambda item: METHOD_GROUPS.index(item[1].group))
    return {
        name: Look(method.display, method.colour, "*" if name == "zero-shot" else "D")
        for name, method in order
    } | _ENSEMBLES


# Colours are after Okabe and Ito's palette, which stay apart under colour blindness, with its pale
# ones darkened enough for text; markers tell methods apart without them.
LOOKS = _looks()
_OTHER = "#444444"

# An ensemble on FT goes by its own name, as in the papers.
_PLAIN_BASES = (None, "ft")


def row_of(record: Mapping[str, Any]) -> Row:
    """The table row a record belongs to; an ensemble on FT and one without a base are the same."""
    base = record.get("base")
    return record["method"], None if base in _PLAIN_BASES else base


def display(row: Row) -> str:
    """("vrf", None) is "VRF", ("vrf", "dive") is "DiVE+VRF", ("vrf-logit", None) "VRF (logit)".

    Unknown names stay as they are, made readable.
    """
    method, base = row
    own = _name(method)
    return own if base is None else f"{_name(base)}+{own}"


def colour(row: Row) -> str:
    """An ensemble on another base than FT takes its base's colour; the marker tells it apart."""
    method, base = row
    look = LOOKS.get(family(base or method))
    return _OTHER if look is None else look.colour


def marker(method: str) -> str:
    return LOOKS[family(method)].marker if family(method) in LOOKS else "D"


def family(method: str) -> str:
    """The method of which `method` is an ablation: "vrf" of "vrf-logit"."""
    return "vrf" if method.startswith("vrf-") else method


def group(row: Row) -> str:
    """One of GROUPS: that of its method; "ensembles"; "other" for a method that is not known."""
    method = row[0]
    if family(method) in _ENSEMBLES:
        return "ensembles"
    return METHODS[method].group if method in METHODS else "other"


def in_order(rows: Iterable[Row]) -> list[Row]:
    """By group; within one, what is built on FT or on nothing first, in the order of LOOKS, then
    what is built on other bases."""
    order = list(LOOKS)

    def place(name: str | None) -> int:
        if name is None:
            return -1
        return order.index(family(name)) if family(name) in order else len(order)

    found = list(dict.fromkeys(rows))
    return sorted(
        found,
        key=lambda row: (
            GROUPS.index(group(row)),
            row[1] is not None,
            place(row[1]),
            place(row[0]),
            found.index(row),
        ),
    )


def _name(method: str) -> str:
    if method in LOOKS:
        return LOOKS[method].display
    if family(method) in LOOKS:
        parts = method.removeprefix(f"{family(method)}-").split("-")
        words = ", ".join("all data" if part == "all" else part for part in parts)
        return f"{LOOKS[family(method)].display} ({readable(words)})"
    return readable(method)

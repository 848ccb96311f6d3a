"""Protocols: of which data, shots and seeds a published kind of table is made, one YAML file each.

title: ...
source: ...             # where the protocol is from
data: [imagenet, ...]   # registered sets
shots: [1, 2, 4, 8, 16] # training images a class
halves: true            # train on the base half of the classes, evaluate on both [default: false]
suite: imagenet         # whose OOD sets are evaluated too [default: none]
settings: {seeds: 3}    # options of `robustft compare`
departs: [...]          # where it is not the published one
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustft.data.text_files import read_yaml
from robustft.errors import InputError

_HOME = Path(__file__).parent


@dataclass(frozen=True)
class Protocol:
    """A kind of table: every data set with every number of shots, by one set of options."""

    name: str
    title: str
    source: str
    data: list[str]
    shots: list[int]
    settings: dict[str, Any]
    halves: bool = False
    suite: str | None = None
    departs: list[str] = field(default_factory=list)


def names() -> list[str]:
    """Every protocol of the package, sorted."""
    return sorted(path.stem for path in _HOME.glob("*.yaml"))


def load(name: str) -> Protocol:
    """A protocol by its name, or by the path of a YAML file of that form.

    Errors: InputError for an unknown name, or a file of another form.
    """
    own = name.endswith((".yaml", ".yml"))
    if not own and name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.3) or names()
        raise InputError(f"--protocol: got {name!r}, expected {' or '.join(near)}, or a YAML file")
    path = Path(name) if own else _HOME / f"{name}.yaml"
    values = read_yaml(path)
    try:
        protocol = Protocol(name=path.stem, **values)
        if not (protocol.data and protocol.shots):
            raise ValueError("data and shots need an entry each")
        if any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in protocol.shots):
            raise ValueError(f"got the shots {protocol.shots}, expected whole numbers from 1 on")
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not a protocol: {error}") from error
    return protocol

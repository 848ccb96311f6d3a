"""Recipes: the settings of published runs, one YAML file each, as METHOD/NAME.yaml.

title: ...
settings: {method: dive, model: ViT-B-16, ...}    # options of `robustft train`
published:                                        # rows of tables, in percent
  - {row: DiVE, source: arXiv ..., figures: {ImageNet: 82.5, ...}}
hardware: ...      # of the paper's run, where it is known
hours: 58.9        # that it took there
seeds: [0, 1, 2]
departs: [...]     # where the run is not the paper's
then: [...]        # commands afterwards, RUN being the run's folder
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
class Row:
    """A row of a published table. figures: by data set, in percent."""

    row: str
    source: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """A published run: the options of `robustft train`, and what is known of it."""

    name: str
    title: str
    settings: dict[str, Any]
    published: list[Row] = field(default_factory=list)
    hardware: str | None = None
    hours: float | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    departs: list[str] = field(default_factory=list)
    then: list[str] = field(default_factory=list)

    def settings_for(self, processes: int) -> dict[str, Any]:
        """The settings of each of several processes, which share the batch.

        Errors: InputError where the batch is not a multiple of their number.
        """
        found = dict(self.settings)
        batch = found.get("batch_size")
        if batch is not None:
            if batch % processes:
                raise InputError(
                    f"--recipe: got a batch of {batch} and {processes} processes, expected a "
                    "divisor of the batch, or --batch-size for each process"
                )
            found["batch_size"] = batch // processes
        return found


def names() -> list[str]:
    """Every recipe of the package, sorted."""
    found = (path.relative_to(_HOME).with_suffix("") for path in _HOME.glob("*/*.yaml"))
    return sorted(path.as_posix() for path in found)


def load(name: str) -> Recipe:
    """A recipe by its name, or by the path of a YAML file of that form.

    Errors: InputError for an unknown name, with the nearest ones, or a file of another form.
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else _HOME / f"{name}.yaml"
    if not own and name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.3)
        raise InputError(f"--recipe: got {name!r}, expected one such as {', '.join(near)}")
    values = read_yaml(path)
    try:
        settings = dict(values.pop("settings"))
        rows = [Row(**row) for row in values.pop("published", [])]
        return Recipe(name=name, settings=settings, published=rows, **values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a recipe: {error}") from error

"""What data are there: the training data that a place holds, and the test sets beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import homes, roots
from robustft.data.registry.known import REGISTRY
from robustft.data.registry.load import find
from robustft.data.registry.spec import Spec
from robustft.data.table_rows import is_table
from robustft.errors import InputError

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset

DEFAULT = "data"
_SETTINGS = {"id": "id", "ood": "ood", "forgetting": "zero_shot"}


@dataclass(frozen=True)
class Found:
    """Training data; the settings of `robustft train` that name them and their test sets; and what
    there is to say of them."""

    train: ImageDataset
    settings: dict[str, Any]
    said: list[str]


def look(data: str | None, location: str | None) -> Found:
    """What --data and --data-location name; without them the folder `data`.

    Errors: InputError where there are no training data, or some of which one must be chosen.
    """
    from robustft.data import load_dataset
    from robustft.evaluate.roles import make_entry

    if location is None and not Path(DEFAULT).is_dir():
        raise InputError(
            f"--data-location: got nothing, and there is no folder {DEFAULT} here; expected the "
            "folder of your images, a .csv or .tsv, or digits"
        )
    location = location or DEFAULT
    if data is None and roots.is_root(location):
        data, location = _below(Path(location))
    home = roots.training_data(data, location) or ""
    train, val = (load_dataset(home, split) for split in ("train", "val"))
    kind = f"classes: {len(train.classnames):,}" if train.classnames else "with captions"
    said = [f"{train.name}: {len(train):,} images to train, {len(val):,} to validate, {kind}"]
    named: dict[str, list[str]] = {}
    for name, spec in _registered(data, location) if data is not None else _beside(home):
        own = homes.is_test_of(spec, home)
        try:
            test = load_dataset(spec, "test")
            role = make_entry(test, train.label_space, stated=None, own=own).role
        except InputError as error:
            said.append(f"{name}: left out: {error}")
            continue
        named.setdefault(_SETTINGS[role], []).append(name)
        said.append(f"{name}: {len(test):,} images to test ({role})")
    if "id" not in named:
        said.append("no test images of the training data's own: nothing will be measured on them")
    settings = {"data_location": location} | ({} if data is None else {"data": data})
    return Found(train, settings | (named or {"zero_shot": ["inks"]}), said)


def _below(root: Path) -> tuple[str | None, str]:
    """--data and --data-location of the one table, or the one registered set, in a folder."""
    tables = [str(path) for path in sorted(root.iterdir()) if is_table(path)]
    tables = [path for path in tables if homes.has_split(path, "train", 0)]
    names = [name for name in REGISTRY if _is_there(name, root, "train")]
    found = [*((None, path) for path in tables), *((name, str(root)) for name in names)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"--data-location: {root} holds {', '.join([*tables, *names])}; expected one of them, "
            "a registered set by --data"
        )
    raise InputError(
        f"--data-location: {root} holds neither train/<class>/<image>, nor a .csv or .tsv with "
        "path and label, nor a registered set (robustft data ls)"
    )


def _registered(data: str, root: str) -> Iterator[tuple[str, str]]:
    """The registered test sets below a root, the training data's own first: by name, and by name
    with the root."""
    for name in sorted(REGISTRY, key=lambda name: name != data):
        if _is_there(name, Path(root), "test"):
            yield name, str(roots.training_data(name, root))


def _beside(home: str) -> Iterator[tuple[str, str]]:
    """The test set of training data, then what has a test split in the folder where they lie; twice
    as it is named."""
    from robustft.data import built_in_names

    own, built_in = homes.test_data(home), built_in_names()
    folder = Path(home).parent
    others = built_in if home in built_in else [str(path) for path in sorted(folder.iterdir())]
    mine = [name for name in others if homes.is_test_of(name, home) or homes.is_test_of(home, name)]
    for name in dict.fromkeys([own, *(name for name in others if name not in mine)]):
        if homes.has_split(name, "test", 0):
            yield name, name


def _is_there(name: str, root: Path, split: str) -> bool:
    return split in REGISTRY[name].parts and find(Spec(name, str(root)), split) is not None

"""The test sets that flags name, loaded, told apart and given a role.

A set's name is what its folder or table is called, with the folder above where that says too
little (dslr/images) or two sets would be called alike; NAME= states another one.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli.homes import has_split, is_test_of, test_data
from robustft.cli.named import Asked, built_in, is_file, registered, where
from robustft.errors import InputError

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset

# Names that say nothing about what is in them.
_VAGUE = re.compile(
    "images?|imgs?|pictures?|photos?|jpegimages|all|lists?|labels|splits?"
    "|train(ing)?|val|test(ing)?"
)
# All 1,000 would cost a ViT-B on two cores several minutes, before training and after.
_INKS = 200


@dataclass(frozen=True)
class LoadedSets:
    """Loaded test sets; id_name: the training data's own, or None; roles: the stated ones."""

    datasets: list[ImageDataset]
    id_name: str | None
    roles: dict[str, str]
    paths: dict[str, str]  # of each set that is a folder or a table, absolute


def load_one(one: Asked, *, seed: int, val_fraction: float = 0.1) -> ImageDataset:
    """The test split of a set that is asked for. Errors: InputError as in `load_dataset`."""
    from robustft.data import load_dataset

    dataset = load_dataset(one.spec, "test", seed=seed, val_fraction=val_fraction)
    if one.corruption is None:
        return dataset
    from robustft.data.corruptions.apply import corrupted

    known = registered(one.spec)
    imagenet = known is not None and (known.name, known.half) == ("imagenet", None)
    return corrupted(dataset, one.corruption, seed=seed, imagenet=imagenet)


def load_sets(
    asked: Sequence[Asked], home: str, transform: Any, *, seed: int, val_fraction: float = 0.1
) -> LoadedSets:
    """The test splits of the sets asked for; of the training data `home` if none are.

    transform: the model's evaluation transform; seed, val_fraction: as in `load_dataset`.
    Errors: InputError as in `load_dataset`, and for two sets of one stated name.
    """
    asked = list(asked) or [Asked(test_data(home))]
    loaded = [load_one(one, seed=seed, val_fraction=val_fraction) for one in asked]
    names = _names(asked, loaded)
    datasets = []
    for one, dataset, name in zip(asked, loaded, names, strict=True):
        if one.first is not None:
            dataset = dataset.subset(range(min(one.first, len(dataset))), split="test")
        dataset = copy.copy(dataset.with_transform(transform))
        dataset.name = name
        datasets.append(dataset)
    own = [n for n, one in zip(names, asked, strict=True) if _is_own(one, home)]
    return LoadedSets(
        datasets=datasets,
        id_name=own[0] if own else None,
        roles={n: one.role for n, one in zip(names, asked, strict=True) if one.role is not None},
        paths={
            n: one.where
            for n, one in zip(names, asked, strict=True)
            if registered(one.spec) is not None or Path(one.spec).exists()
        },
    )


def own_names(spec: str) -> list[str]:
    """What the data may be called in a file name, the shortest first: as the folder or table is,
    and with more and more of the folders above."""
    if built_in(spec):
        return [spec]
    known = registered(spec)
    if known is not None:
        return [known.plain]
    path = Path(os.path.abspath(spec))
    own = path.stem if path.is_file() else path.name
    parts = [*path.parts[1:-1], own]
    least = 2 if _VAGUE.fullmatch(own.lower()) else 1
    return ["-".join(parts[-n:]) for n in range(min(least, len(parts)), len(parts) + 1)]


def default_sets(home: str, asked: Sequence[Asked], *, seed: int) -> list[tuple[Asked, str]]:
    """What is added to the sets asked for, each with the flag that would have named another: the
    training data's own test set as ID (if it has one, or nothing else is there to evaluate on),
    and some of the built-in ink colours, which any CLIP knows, for what is forgotten."""
    found = []
    own = Asked(test_data(home), role="id")
    named = any(one.role == "id" or _is_own(one, home) for one in asked)
    if not named and (not asked or has_split(own.spec, "test", seed)):
        found.append((own, "--id"))
    if not any(one.role == "forgetting" for one in asked):
        inks = Asked("inks", f"Inks-{_INKS}", "forgetting", first=_INKS)
        found.append((inks, "--zero-shot"))
    return found


def check_names(loaded: LoadedSets, files: Sequence[Path]) -> None:
    """InputError where a result file has lines of another set under the name of one of these."""
    from robustft.evaluate.results import read_results

    for file in files:
        for line in read_results(file) if file.is_file() else ():
            name, path = str(line.get("dataset")), line.get("path")
            if path is not None and loaded.paths.get(name, path) != path:
                raise InputError(
                    f"{file}: {name!r} is {path} there and {loaded.paths[name]} here; give one of "
                    "them another name, as NAME=DATASET"
                )


def _is_own(one: Asked, home: str) -> bool:
    """Whether a set that is asked for is the training data's own test set, as it is."""
    return one.corruption is None and is_test_of(one.spec, home)


def _names(asked: Sequence[Asked], loaded: Sequence[ImageDataset]) -> list[str]:
    parts = [_parts(one, dataset) for one, dataset in zip(asked, loaded, strict=True)]
    taken = [2 if _VAGUE.fullmatch(p[-1].lower()) else 1 for p in parts]
    for _ in range(max(map(len, parts))):
        names = ["/".join(p[-n:]) for p, n in zip(parts, taken, strict=True)]
        taken = [n + (names.count(name) > 1) for n, name in zip(taken, names, strict=True)]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"datasets: got two called {repeated!r}, expected NAME=DATASET for one")
    return names


def _parts(one: Asked, dataset: ImageDataset) -> list[str]:
    """What a name is made of, the folders above and its own name, which comes last."""
    if one.name is not None:
        return [one.name]
    if not is_file(one.spec):
        return [dataset.name]
    return [*Path(where(one.spec)).parts[1:-1], dataset.name]

"""The test sets that flags name: `[NAME=]DATASET[:ROLE]`, loaded, told apart and given a role.

A set's name is what its folder or table is called, with the folder above where that says too
little (dslr/images) or two sets would be called alike; NAME= states another one.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.data.corruptions.names import ALL, Corruption, corruption_of
from robustft.errors import InputError

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset
    from robustft.data.registry.spec import Spec

_ROLES = {"id": "id", "ood": "ood", "forgetting": "forgetting", "zero-shot": "forgetting"}
# Names that say nothing about what is in them.
_VAGUE = re.compile(
    "images?|imgs?|pictures?|photos?|jpegimages|all|lists?|labels|splits?"
    "|train(ing)?|val|test(ing)?"
)
# All 1,000 would cost a ViT-B on two cores several minutes, before training and after.
_INKS = 200
_TRAIN, _TEST = frozenset(("train", "training")), frozenset(("test", "testing"))


@dataclass(frozen=True)
class Asked:
    """A data set as a flag names it; name and role are None where they are not stated."""

    spec: str
    name: str | None = None
    role: str | None = None
    first: int | None = None  # so many samples of it, None for all
    corruption: Corruption | None = None

    def written(self, spec: str) -> str:
        """As a flag would name it, with `spec` as the data set."""
        head = "" if self.name is None else f"{self.name}="
        return head + self._under(spec) + ("" if self.role is None else f":{self.role}")

    @property
    def where(self) -> str:
        """The data set, absolute."""
        return self._under(_where(self.spec))

    def _under(self, spec: str) -> str:
        return spec if self.corruption is None else f"{self.corruption}:{spec}"


@dataclass(frozen=True)
class LoadedSets:
    """Loaded test sets; id_name: the training data's own, or None; roles: the stated ones."""

    datasets: list[ImageDataset]
    id_name: str | None
    roles: dict[str, str]
    paths: dict[str, str]  # of each set that is a folder or a table, absolute


def parse(text: str, role: str | None = None) -> Asked:
    """`[NAME=][CORRUPTION:]DATASET[:ROLE]`. What exists as it stands is a path, whatever it has in
    its name.

    Errors: InputError for a role that contradicts `role`, the one that the flag states.
    """
    name, spec = None, text
    if not _exists(spec):
        head, colon, tail = spec.rpartition(":")
        if colon and head and tail in _ROLES:
            if role not in (None, _ROLES[tail]):
                raise InputError(f"datasets: got {text!r} under the flag of the role {role}")
            spec, role = head, _ROLES[tail]
    if not _exists(spec):
        head, equals, tail = spec.partition("=")
        if equals and head and tail:
            name, spec = head, tail
    corruption, bare = corruption_of(spec) if not _exists(spec) else (None, spec)
    return Asked(bare, name, role, corruption=corruption)


def asked_for(
    eval_datasets: Sequence[str], id: Sequence[str], ood: Sequence[str], zero_shot: Sequence[str]
) -> list[Asked]:
    """The sets of `--eval-datasets`, `--id`, `--ood` and `--zero-shot`, each once.

    Errors: InputError for a set of two roles.
    """
    flags = ((None, eval_datasets), ("id", id), ("ood", ood), ("forgetting", zero_shot))
    found: dict[tuple[str, str | None], Asked] = {}
    for role, texts in flags:
        for text in texts:
            for one in _each(parse(text, role)):
                key = one.where, one.name
                before = found.get(key)
                if before is not None and None not in (before.role, one.role) and before != one:
                    raise InputError(
                        f"datasets: got {one.spec!r} as {before.role} and as {one.role}, "
                        "expected one role"
                    )
                if before is None or one.role is not None:
                    found[key] = one
    return list(found.values())


def _each(one: Asked) -> list[Asked]:
    """Itself, or one set for every corruption that it stands for."""
    if one.corruption is None or one.corruption.name != ALL:
        return [one]
    return [
        dataclasses.replace(
            one, corruption=by, name=None if one.name is None else f"{one.name} ({by})"
        )
        for by in one.corruption.each
    ]


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
    if _built_in(spec):
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


def by_role(one: Asked) -> int:
    """The place among test sets: ID first, what is forgotten last."""
    return {"id": 0, "forgetting": 2}.get(one.role or "", 1)


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


def find_home(asked: Sequence[Asked], *, seed: int) -> str:
    """The training data that test sets without a run refer to: those that the ID set has.

    The set stated as ID; else the one set that training data belong to; else, where all have the
    same classes and none has training data, the set with the most of them.
    Errors: InputError where more than one could be meant.
    """
    stated = [one.spec for one in asked if one.role == "id"]
    if stated:
        return stated[0]
    if all(one.role == "forgetting" for one in asked):
        return asked[0].spec  # no set has a role that depends on it
    open_ = [one for one in asked if one.role is None] or list(asked)
    homes = [home for one in open_ if (home := _training_data(one.spec, seed)) is not None]
    homes = list(dict.fromkeys(homes))
    if len(homes) > 1:  # roles are told by classes: what has none gives way
        homes = [home for home in homes if _has_classes(home, seed)] or homes
    if len(homes) == 1:
        return homes[0]
    if len(homes) > 1:
        raise InputError(
            f"--eval-datasets: got {' and '.join(homes[:3])}, any of which could be the training "
            "distribution; state it: --id SET, or --data-location TRAINING-DATA"
        )
    from robustft.data import load_dataset

    sets = [(load_dataset(one.spec, "test", seed=seed), one.spec) for one in open_]
    largest, spec = max(sets, key=lambda pair: len(pair[0].classnames))
    for other, name in sets:
        if not set(other.classnames) & set(largest.classnames):
            raise InputError(
                f"--eval-datasets: got {spec} and {name}, which have no class in common; state "
                "their roles: --id, --ood or --zero-shot"
            )
    return spec


def _is_own(one: Asked, home: str) -> bool:
    """Whether a set that is asked for is the training data's own test set, as it is."""
    return one.corruption is None and is_test_of(one.spec, home)


def _has_classes(spec: str, seed: int) -> bool:
    """Whether data have classes, and not captions in their place."""
    from robustft.data import load_dataset

    split = "test" if has_split(spec, "test", seed) else "train"
    return bool(load_dataset(spec, split, seed=seed).classnames)


def is_test_of(spec: str, home: str) -> bool:
    """Whether `spec` is the training data `home` itself, or its test twin.

    Twins are called alike but for the word train and the word test: birds-train.csv and
    birds-test.csv, train/list.csv and test/list.csv, flowers.csv and flowers-test.csv.
    """
    if not home or spec == home or _where(spec) == _where(home):
        return bool(home)
    if not (_is_file(spec) and _is_file(home)):
        return False
    mine, its = Path(_where(spec)), Path(_where(home))
    if mine.suffix.lower() != its.suffix.lower() or len(mine.parts) != len(its.parts):
        return False
    pairs = list(zip((*mine.parts[:-1], mine.stem), (*its.parts[:-1], its.stem), strict=True))
    return all(a == b or _twins(a, b) for a, b in pairs)


def _twins(test: str, train: str) -> bool:
    mine, its = _words(test), _words(train)
    kept = [word for word in mine if word not in _TEST]
    return len(kept) == len(mine) - 1 and kept == [word for word in its if word not in _TRAIN]


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s._-]+", name.lower()) if word]


def test_data(home: str) -> str:
    """The training data's own test set: `home`, or the one twin beside it that is a table."""
    path = Path(home)
    if _built_in(home) or not path.is_file():
        return home
    twins = [
        str(other)
        for other in sorted(path.parent.iterdir())
        if other.name != path.name and other.is_file() and is_test_of(str(other), home)
    ]
    return twins[0] if len(twins) == 1 else home


def _training_data(spec: str, seed: int) -> str | None:
    """The training data that `spec` is the test set of, if there are any."""
    if _built_in(spec):
        return "digits" if spec == "digits" or spec.startswith("digits-") else None
    if registered(spec) is not None:
        return spec if has_split(spec, "train", seed) else None
    path = Path(spec)
    others = sorted(path.parent.iterdir()) if path.is_file() else []
    twins = [str(x) for x in others if x.name != path.name and is_test_of(spec, str(x))]
    if len(twins) == 1:
        return twins[0]
    return spec if has_split(spec, "train", seed) else None


def has_split(spec: str, split: str, seed: int) -> bool:
    """Whether there are data of that split under that name."""
    from robustft.data import load_dataset

    known = registered(spec)
    try:
        if known is not None:  # without listing a million files
            from robustft.data.registry.load import find

            return find(known, split) is not None
        load_dataset(spec, split, seed=seed)
    except InputError:
        return False
    return True


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
    if not _is_file(one.spec):
        return [dataset.name]
    return [*Path(_where(one.spec)).parts[1:-1], dataset.name]


def _built_in(spec: str) -> bool:
    from robustft.data import built_in_names

    return spec in built_in_names()


def registered(spec: str) -> Spec | None:
    """The registered set, with its root, that a data set's name means; None for anything else."""
    from robustft.data.registry.spec import with_root

    return with_root(spec)


def _is_file(spec: str) -> bool:
    """Whether a name is a path: a folder's or a table's, there or not."""
    return not _built_in(spec) and registered(spec) is None


def _exists(spec: str) -> bool:
    known = registered(spec)
    if known is not None:
        return Path(str(known.root)).is_dir()
    return _built_in(spec) or Path(spec).exists()


def _where(spec: str) -> str:
    return str(Path(spec).resolve()) if _is_file(spec) else spec

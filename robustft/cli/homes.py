"""Which training data a test set belongs to, and which test set is the training data's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from robustft.cli.named import Asked, built_in, is_file, registered, where
from robustft.data.registry.known import REGISTRY
from robustft.errors import InputError

_TRAIN, _TEST = frozenset(("train", "training")), frozenset(("test", "testing"))


def find_home(asked: Sequence[Asked], *, seed: int) -> str:
    """The training data that test sets without a run refer to: those that the ID set has.

    The set stated as ID; else the one set that training data belong to, of registered ones also
    where they are not on this disk; else, where all have the same classes and none has training
    data, the set with the most of them.
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
    published = [one.spec for one in open_ if _is_trained_on(one.spec)]
    if not homes and len(published) == 1:
        return published[0]
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


def trains(home: str, *, seed: int) -> bool:
    """Whether there are training data of that name: here, or, of a registered set, as published."""
    return _is_trained_on(home) or has_split(home, "train", seed)


def _is_trained_on(spec: str) -> bool:
    """Whether a registered set has training data, on this disk or not."""
    known = registered(spec)
    return known is not None and "train" in REGISTRY[known.name].parts


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
    if not home or spec == home or where(spec) == where(home):
        return bool(home)
    if not (is_file(spec) and is_file(home)):
        return False
    mine, its = Path(where(spec)), Path(where(home))
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
    if built_in(home) or not path.is_file():
        return home
    twins = [
        str(other)
        for other in sorted(path.parent.iterdir())
        if other.name != path.name and other.is_file() and is_test_of(str(other), home)
    ]
    return twins[0] if len(twins) == 1 else home


def _training_data(spec: str, seed: int) -> str | None:
    """The training data that `spec` is the test set of, if there are any."""
    if built_in(spec):
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

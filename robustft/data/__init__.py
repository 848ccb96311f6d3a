"""Datasets by name or path, and the built-in world that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from robustft.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from robustft.data.classes import Lines
    from robustft.data.datasets import ImageDataset, PairDataset
    from robustft.data.templates import Templates

__all__ = ["load_dataset", "load_reference"]

GENERATED_PAIRS = 4096  # reference pairs of the built-in world, where no number is given


def load_dataset(
    spec: str | Path,
    split: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    classnames: Lines = None,
    templates: Templates = None,
) -> ImageDataset:
    """The dataset that `spec` names.

    "digits": scikit-learn's handwriting (train, val, test); "digits-<shift>": a shifted test set;
    "letters" and "inks": the forgetting sets (test); a folder (robustft.data.folders) or a .csv or
    .tsv table (robustft.data.tables); "NAME@ROOT": a public data set below a folder
    (robustft.data.registry). `seed` decides the splits and the generated images;
    `val_fraction`, not of built-in sets, is what is carved from train when val is missing.
    `classnames` and `templates` (lists or text files) replace the dataset's own.
    Errors: InputError for an unknown name, a split that is not there, or unusable files.
    """
    from robustft.data import folders, tables
    from robustft.data.registry import spec as registered
    from robustft.data.table_rows import is_table

    known = registered.with_root(str(spec))
    if known is not None:
        from robustft.data.registry.load import load as load_registered

        dataset = load_registered(known, split, seed=seed, val_fraction=val_fraction)
        return _renamed(dataset, str(spec), classnames, templates)
    if is_table(spec):
        load: Callable[..., ImageDataset] = tables.load_table
    elif spec in built_in_names():
        return _built_in(str(spec), split, seed, classnames, templates)
    elif Path(spec).is_dir() or "/" in str(spec) or len(Path(spec).parts) > 1:
        load = folders.load_folder
    else:
        raise InputError(
            f"unknown dataset {str(spec)!r}: expected one of {', '.join(built_in_names())}, "
            "an image folder, a .csv or .tsv file, or a registered set as NAME@ROOT"
        )
    return load(
        spec,
        split,
        seed=seed,
        val_fraction=val_fraction,
        classnames=classnames,
        templates=templates,
    )


def load_reference(spec: str | Path, *, n: int | None = None, seed: int = 0) -> PairDataset:
    """Image–caption pairs for DiVE: "glyphs" (generated), a table with path and caption, or a
    registered set as "NAME@ROOT" (labelled images get captions of their class names).

    `n` None: all pairs, or 4,096 glyphs. From more pairs than `n`, `n` are drawn by `seed`; fewer
    are taken whole. `available` of the result says how many it has.
    Errors: InputError for n below 1, an unknown name, or a table that cannot be used.
    """
    from robustft.data import tables, world
    from robustft.data.registry import spec as registered
    from robustft.data.table_rows import is_table

    if n is not None and n < 1:
        raise InputError(f"n: got {n}, expected at least 1")
    if spec == "glyphs":
        return world.reference_pairs(GENERATED_PAIRS if n is None else n, seed)
    known = registered.with_root(str(spec))
    if known is not None:
        from robustft.data.registry.load import load_pairs

        return load_pairs(known, n=n, seed=seed)
    if not is_table(spec):
        raise InputError(
            f"unknown reference set {str(spec)!r}: expected 'glyphs', a .csv or .tsv file, or a "
            "registered set as NAME@ROOT"
        )
    return tables.load_pairs(spec, n=n, seed=seed)


def built_in_names() -> list[str]:
    """Every built-in dataset."""
    from robustft.data.words import SHIFT_NAMES

    return ["digits", *(f"digits-{shift}" for shift in SHIFT_NAMES), "letters", "inks"]


def _built_in(
    spec: str, split: str, seed: int, classnames: Lines, templates: Templates
) -> ImageDataset:
    from robustft.data import digits, world

    if spec == "digits":
        dataset = digits.digits(split, seed)
    elif split != "test":
        raise InputError(f"{spec!r} is a test set: it has no {split!r} split")
    elif spec == "letters":
        dataset = world.letters(seed=seed)
    elif spec == "inks":
        dataset = world.inks(seed=seed)
    else:
        dataset = digits.digit_shift(spec.removeprefix("digits-"), seed)
    return _renamed(dataset, spec, classnames, templates)


def _renamed(
    dataset: ImageDataset, spec: str, classnames: Lines, templates: Templates
) -> ImageDataset:
    """The dataset under the class names and templates that are given, if any are."""
    from robustft.data.classes import read_class_list
    from robustft.data.templates import read_templates

    listed = read_class_list(classnames)
    if listed is not None:
        if len(listed.names) != len(dataset.classnames):
            raise InputError(
                f"classnames has {len(listed.names)} names for the {len(dataset.classnames)} "
                f"classes of {spec!r}"
            )
        dataset.classnames = listed.names
    dataset.templates = read_templates(templates) or dataset.templates
    return dataset

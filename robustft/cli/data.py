"""`robustft data ls` and `robustft data check`: registered data sets, and what is there of them."""

from __future__ import annotations

from pathlib import Path

from robustft.cli.data_options import CheckOptions, ListOptions
from robustft.cli.ending import command, end
from robustft.data.registry.form import Part
from robustft.data.registry.known import REGISTRY
from robustft.data.registry.load import counts, expected, find, not_found, read, wrong_counts
from robustft.data.registry.spec import Spec, parse
from robustft.errors import InputError


def ls(options: ListOptions) -> None:
    """Carry out `robustft data ls`."""
    width = max(map(len, REGISTRY))
    for name, entry in REGISTRY.items():
        parts = "; ".join(f"{split} {_published(part)}" for split, part in entry.parts.items())
        print(f"{name:{width}}  {entry.display}: {parts}")
        if options.data_location is not None:
            spec = Spec(name, options.data_location)
            for split in entry.parts:
                print(f"{'':{width}}  {split}: {find(spec, split) or 'not found'}")


def check(options: CheckOptions) -> None:
    """Carry out `robustft data check`."""
    if options.data_location is None:
        raise InputError("--data-location: got nothing, expected a folder")
    for name in options.names:
        if parse(name) is None:
            raise InputError(f"data check: got {name!r}, expected one of {', '.join(REGISTRY)}")
    wrong = print_found(Path(options.data_location), options.names)
    if wrong:
        raise SystemExit(2)
    end(next=[command("init", "--data-location", options.data_location)])


def print_found(root: Path, names: list[str] | None = None) -> int:
    """Print what lies below `root`, and then what is missing; returns how many splits are not as
    they should be. names: of these sets; without any, sets that are not there are no fault."""
    if not root.is_dir():
        raise InputError(f"--data-location: got {root}, expected a folder")
    print(f"data sets below {root}", flush=True)
    wrong, missing = 0, dict[str, list[Spec]]()
    for name in names or REGISTRY:
        spec = (parse(name) or Spec(name)).at(root)
        entry = REGISTRY[spec.name]
        places = {split: find(spec, split) for split in entry.parts}
        if not names and not any(places.values()):
            missing.setdefault(entry.download or name, []).append(spec)
            continue
        for split, place in places.items():
            fault, text = (True, not_found(spec, split)) if place is None else _seen(spec, split)
            wrong += fault and (place is not None or bool(names))
            print(f"  {text}", flush=True)
    for first, *others in missing.values():  # of one download together: ImageNet-C is fifteen sets
        nor = f"; nor {', '.join(other.name for other in others)}" if others else ""
        print(f"  {not_found(first, next(iter(REGISTRY[first.name].parts)))}{nor}")
    return wrong


def _seen(spec: Spec, split: str) -> tuple[bool, str]:
    """Whether a split that is there is faulty, and what is said of it."""
    entry, place = REGISTRY[spec.name], find(spec, split)
    assert place is not None
    try:
        dataset = read(entry, spec, split, place)
    except InputError as error:
        return True, f"{spec.name} {split}: {error}"
    images, classes, captions = counts(dataset)
    held = f"{images:,} images, "
    held += f"{captions:,} captions" if classes is None else f"{classes:,} classes"
    problem = wrong_counts(expected(spec, split, place), dataset)
    text = f"{spec.name} {split}: {held} in {place}"
    if problem is None:
        return False, text
    return problem.fatal and not spec.partial, f"{text}: {problem.text}"


def _published(part: Part) -> str:
    number = "any number of" if part.images is None else f"{part.images:,}"
    classes = "" if part.classes is None else f" of {part.classes:,} classes"
    captions = "" if part.captions is None else f" with {part.captions:,} captions"
    return f"{number} images{classes}{captions}"

"""BREEDS (arXiv 2008.04859): superclasses of ImageNet's classes, of which the source domain has
some subclasses and the target domain others.

Superclasses are the nodes at one level of the paper's class hierarchy, a WordNet that its authors
mended: class_hierarchy.txt ("parent child" a line) and node_names.txt ("node<TAB>names" a line) of
MadryLab/BREEDS-Benchmarks. Subclasses are drawn as its code draws them (split "rand", seed 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from robustft.data.datasets import ImageDataset
from robustft.data.images import FileImages
from robustft.data.registry.files import class_folders, labelled_images
from robustft.data.registry.imagenet import wnids
from robustft.data.registry.request import Request
from robustft.data.text_files import filled_lines
from robustft.errors import InputError

ROOT = "n00001740"  # entity
_SEED = 2
_DOMAINS = ("source", "target")


def read_breeds(request: Request) -> ImageDataset:
    """class_hierarchy.txt, node_names.txt beside it, and a domain's subclasses among ImageNet's
    folders. images_in: places of these below the root, of which the first that exists counts;
    level, subclasses, below: which superclasses (`Hierarchy.domains`); domain: source or target."""
    options, images = request.options, _images_folder(request)
    domain = str(options.get("domain"))
    if domain not in _DOMAINS:
        raise InputError(f"{request.spec}: got the domain {domain!r}, expected source or target")
    hierarchy = Hierarchy(read_edges(request.place), wnids())
    domains = hierarchy.domains(
        int(options["level"]), int(options["subclasses"]), below=str(options.get("below", ROOT))
    )
    called = _names(request.place.parent / "node_names.txt")
    label_of = {
        wnid: label
        for label, both in enumerate(domains.values())
        for wnid in both[_DOMAINS.index(domain)]
    }
    there = set(class_folders(images))
    missing = [wnid for wnid in label_of if wnid not in there]
    if missing and not request.partial:
        raise InputError(
            f"{request.spec}: {len(missing)} of its {len(label_of)} class folders are not in "
            f"{images}, the first is {missing[0]}; is an archive half unpacked?"
        )
    paths, labels, occurring = labelled_images(
        images, {wnid: label for wnid, label in label_of.items() if wnid in there}
    )
    return ImageDataset(
        FileImages(paths),
        labels,
        classnames=[called.get(node, node) for node in domains],
        classes=list(domains),
        name=request.display,
        split=request.split,
        class_subset=None if len(occurring) == len(domains) else occurring,
    )


class Hierarchy:
    """The nodes above some leaves of a class hierarchy. edges: (parent, child)."""

    def __init__(self, edges: Iterable[tuple[str, str]], leaves: Iterable[str]) -> None:
        parents: dict[str, set[str]] = {}
        for parent, child in edges:
            parents.setdefault(child, set()).add(parent)
        self.leaves = {leaf for leaf in leaves if leaf in parents}
        self.children: dict[str, set[str]] = {}
        front = self.leaves
        while front:
            for node in front:
                for parent in parents.get(node, ()):
                    self.children.setdefault(parent, set()).add(node)
            front = {parent for node in front for parent in parents.get(node, ())}

    def levels(self) -> dict[str, int]:
        """The steps from the root to each node, on the longest way."""
        found: dict[str, int] = {}
        front, level = {ROOT}, 0
        while front:
            found |= dict.fromkeys(front, level)  # a later level is a longer way
            front = {child for node in front for child in self.children.get(node, ())}
            level += 1
        return found

    def leaves_below(self, node: str) -> list[str]:
        """The leaves at or below a node, sorted."""
        found, front = set(), {node}
        while front:
            found |= front & self.leaves
            inner = front - self.leaves
            front = {child for one in inner for child in self.children.get(one, ())}
        return sorted(found)

    def superclasses(self, level: int, least: int, *, below: str = ROOT) -> list[str]:
        """The nodes of a level, at or below a node, that have at least so many leaves; sorted."""
        inside, front = {below}, {below}
        while front:
            front = {child for node in front for child in self.children.get(node, ())}
            inside |= front
        at = [node for node, found in self.levels().items() if found == level and node in inside]
        return sorted(node for node in at if len(self.leaves_below(node)) >= least)

    def domains(
        self, level: int, subclasses: int, *, below: str = ROOT
    ) -> dict[str, tuple[list[str], list[str]]]:
        """By superclass its subclasses in the source and in the target domain, half of them each.

        Errors: InputError where the hierarchy has no such superclass.
        """
        # The published splits are NumPy's older generator's, superclass by superclass.
        rng = np.random.RandomState(_SEED)
        found = {}
        for node in self.superclasses(level, subclasses, below=below):
            drawn = rng.choice(self.leaves_below(node), subclasses, replace=False).tolist()
            found[node] = (drawn[: subclasses // 2], drawn[subclasses // 2 :])
        if not found:
            raise InputError(
                f"hierarchy: got no node at level {level} with {subclasses} classes of ImageNet; "
                "is this the one of BREEDS?"
            )
        return found


def read_edges(path: Path) -> list[tuple[str, str]]:
    """ "parent child" a line. Errors: InputError with the line that is none."""
    found = []
    for number, line in filled_lines(path):
        parts = line.split()
        if len(parts) != 2:
            raise InputError(f"{path}, line {number}: got {line!r}, expected 'parent child'")
        found.append((parts[0], parts[1]))
    return found


def _names(path: Path) -> Mapping[str, str]:
    """By node the first of its names, which commas separate."""
    parts = (line.partition("\t") for _, line in filled_lines(path))
    return {node: names.split(",")[0].strip() for node, _, names in parts}


def _images_folder(request: Request) -> Path:
    places = [request.root / str(place) for place in request.options.get("images_in", [])]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise InputError(
            f"{request.spec}: got {request.place} without ImageNet's folders, looked for "
            f"{', '.join(map(str, places))}"
        )
    return found

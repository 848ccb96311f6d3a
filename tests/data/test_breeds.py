"""BREEDS: superclasses by level, subclasses drawn as published, and folders of ImageNet."""

import shutil

import numpy as np
import pytest

from robustft.data import load_dataset
from robustft.data.registry.breeds import Hierarchy, read_edges
from robustft.data.registry.imagenet import wnids
from robustft.errors import InputError, InputWarning
from tests.layouts import breeds, colour

LEAVES = [f"leaf{i}" for i in range(9)]
# A long and a short way to c: its level is that of the longer one. What has no leaf below is not
# there; a leaf's own children do not count.
EDGES = [
    *(("n00001740", "a"), ("n00001740", "c"), ("a", "b"), ("b", "c"), ("a", "dead"), ("a", "d")),
    *(("c", leaf) for leaf in LEAVES[:4]),
    *(("d", "e"), ("e", "f"), ("f", "leaf4"), ("f", "leaf5"), ("leaf5", "leaf6")),
    *(("a", "leaf7"), ("a", "leaf8")),
]


def test_levels_are_the_longest_ways_and_leaves_those_below():
    hierarchy = Hierarchy(EDGES, LEAVES)
    levels = hierarchy.levels()
    assert {n: levels[n] for n in "abcdef"} == {"a": 1, "b": 2, "c": 3, "d": 2, "e": 3, "f": 4}
    assert "dead" not in levels
    assert hierarchy.leaves_below("c") == LEAVES[:4]
    assert hierarchy.leaves_below("e") == ["leaf4", "leaf5"]
    assert hierarchy.leaves_below("a") == ["leaf0", "leaf1", "leaf2", "leaf3", "leaf4", "leaf5",
                                           "leaf7", "leaf8"]  # fmt: skip
    assert hierarchy.superclasses(3, 2) == ["c", "e"]
    assert hierarchy.superclasses(3, 3) == ["c"]
    assert hierarchy.superclasses(3, 2, below="d") == ["e"]


def test_domains_are_drawn_one_superclass_after_the_other():
    found = Hierarchy(EDGES, LEAVES).domains(3, 2)
    rng = np.random.RandomState(2)  # the published generator
    for node, leaves in (("c", LEAVES[:4]), ("e", ["leaf4", "leaf5"])):
        order = rng.permutation(len(leaves))
        assert found[node] == ([leaves[order[0]]], [leaves[order[1]]])
    with pytest.raises(InputError, match="no node at level 9 with 2 classes of ImageNet"):
        Hierarchy(EDGES, LEAVES).domains(9, 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("breeds")
    breeds(folder)
    return folder


def load(name, root, split="test"):
    with pytest.warns(InputWarning, match="got .* expected"):
        return load_dataset(f"partial:{name}@{root}", split)


def test_source_and_target_share_superclasses_and_no_subclass(root):
    source, target = load("entity30", root), load("entity30-target", root)
    assert source.label_space == target.label_space
    # Of three nodes at level 4 one has 7 classes only.
    assert source.classes == ["nodeA", "nodeB"]
    assert source.classnames == ["first of A", "nodeB"]
    folders = []
    for data in (source, target):
        rows = list(zip(data.images.paths, data.labels.tolist(), strict=True))
        found = [{path.parent.name for path, own in rows if own == label} for label in (0, 1)]
        assert [len(found[label]) for label in (0, 1)] == [4, 4]
        folders.append(found)
    for label, start in ((0, 0), (1, 9)):
        below = set(wnids()[start : start + (9 if label == 0 else 8)])
        assert not folders[0][label] & folders[1][label]
        assert folders[0][label] | folders[1][label] <= below
    assert len(folders[0][0] | folders[1][0]) == 8
    place = {wnid: number for number, wnid in enumerate(wnids())}
    for row, path in enumerate(target.images.paths):
        pixel = tuple(np.asarray(target[row]["image"])[0, 0].tolist())
        assert pixel == colour(place[path.parent.name])
    train = load("entity30", root, "train")
    assert {path.parent.name for path in train.images.paths} == folders[0][0] | folders[0][1]


def test_what_is_missing_is_said(root, tmp_path):
    with pytest.raises(InputError, match="got 8 images, expected 6,000 and 2 classes, expected 30"):
        load_dataset(f"entity30@{root}", "test")
    shutil.copytree(root, tmp_path / "copy")
    gone = load("entity30", root).images.paths[0].parent.name
    shutil.rmtree(tmp_path / "copy" / "imagenet" / "val" / gone)
    message = rf"1 of its 8 class folders are not in .*, the first is {gone}; is an archive half"
    with pytest.raises(InputError, match=message):
        load_dataset(f"entity30@{tmp_path / 'copy'}", "test")
    shutil.rmtree(tmp_path / "copy" / "imagenet" / "val")
    with pytest.raises(InputError, match=r"class_hierarchy.txt without ImageNet's folders, looked"):
        load_dataset(f"entity30@{tmp_path / 'copy'}", "test")
    shutil.rmtree(tmp_path / "copy" / "breeds")
    with pytest.raises(
        InputError, match=r"entity30 test: not found below .*breeds/class_hierarchy"
    ):
        load_dataset(f"entity30@{tmp_path / 'copy'}", "test")


def test_a_line_that_is_no_edge_is_named(tmp_path):
    (tmp_path / "x.txt").write_text("a b\nc\n")
    with pytest.raises(InputError, match="line 2: got 'c', expected 'parent child'"):
        read_edges(tmp_path / "x.txt")

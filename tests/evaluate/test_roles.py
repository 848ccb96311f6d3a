"""Roles follow from classes, or are stated; doubt is refused."""

import numpy as np
import pytest

from robustft.data.classes import LabelSpace
from robustft.data.datasets import ImageDataset
from robustft.errors import InputError
from robustft.evaluate.roles import make_entry

HOME = ["guinea pig", "cat", "dog"]
SPACE = LabelSpace(["0", "1", "2"], HOME)


def _dataset(classnames):
    pixels = np.zeros((len(classnames), 4, 4, 3), np.uint8)
    return ImageDataset(
        pixels, range(len(classnames)), classnames=classnames, name="Set", split="test"
    )


def _entry(classnames, stated=None, own=False):
    return make_entry(_dataset(classnames), SPACE, stated=stated, own=own)


def test_the_same_classes_are_id_or_ood_and_others_are_forgetting():
    assert _entry(HOME, own=True).role == "id"
    assert _entry(HOME).role == "ood"
    assert _entry(["dog", "cat"]).dataset.labels.tolist() == [2, 1]
    assert _entry(["cup", "fork"]).role == "forgetting"


def test_the_same_classes_spelled_otherwise_are_in_doubt_until_the_role_is_stated():
    names = ["Dog", "guinea_pig"]
    with pytest.raises(InputError, match=r"2 of its 2 classes .* role in doubt; state it"):
        _entry(names)
    found = _entry(names, stated="ood")
    assert found.dataset.labels.tolist() == [2, 0]
    assert found.dataset.class_subset.tolist() == [0, 2]
    assert _entry(names, stated="forgetting").dataset.classnames == names


def test_a_part_of_the_classes_is_in_doubt():
    with pytest.raises(InputError, match="1 of its 2 classes"):
        _entry(["dog", "cup"])
    with pytest.raises(InputError, match="role ood and the class 'cup', which the training"):
        _entry(["dog", "cup"], stated="ood")
    assert _entry(["dog", "cup"], stated="forgetting").role == "forgetting"
    with pytest.raises(InputError, match="role of Set: got 'shift'"):
        _entry(HOME, stated="shift")


def test_two_classes_of_one_name_stay_two():
    space = LabelSpace(["n1", "n2", "n3"], ["missile", "cat", "missile"])
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    dataset = ImageDataset(
        pixels, [0, 1], classnames=["missile", "cat"], classes=["n3", "n2"], name="x", split="test"
    )
    entry = make_entry(dataset, space, stated=None, own=False)
    assert entry.dataset.labels.tolist() == [2, 1]
    assert entry.dataset.class_subset.tolist() == [1, 2]


def test_merged_classes_are_found_again_in_the_training_classes():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    names = ["dog", "guinea pig", "cat"]
    sets = {"classnames": names, "merged": [[0, 2], [1]], "class_subset": [0, 1]}
    dataset = ImageDataset(pixels, [0, 1], name="Set", split="test", **sets)
    found = make_entry(dataset, SPACE, stated=None, own=False).dataset
    assert found.labels.tolist() == [2, 0]
    assert found.merged == [[2, 1], [0]]
    assert found.class_subset.tolist() == [0, 2]
    with pytest.raises(InputError, match="a class twice, expected disjoint lists"):
        ImageDataset(pixels, [0, 1], name="S", split="test", classnames=names, merged=[[0, 2], [2]])

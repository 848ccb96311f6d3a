"""Few images a class: drawn by the seed alone, at most so many, the same in every process."""

import numpy as np
import pytest
import torch

from robustft.data.datasets import ImageDataset
from robustft.data.few_shot import few_shot
from robustft.errors import InputError


def dataset(split="train"):
    labels = [0] * 30 + [1] * 3 + [2] * 20
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 2, 3), "u1"
    )
    return ImageDataset(pixels, labels, classnames=["a", "b", "c"], name="Set", split=split)


def test_a_class_has_so_many_images_or_all_it_has():
    few = few_shot(dataset(), 8, seed=0)
    assert few.labels.bincount().tolist() == [8, 3, 8]
    assert few.drawn == sorted(set(few.drawn))
    assert [int(np.asarray(few[i]["image"])[0, 0, 0]) for i in range(len(few))] == few.drawn
    assert torch.equal(few.labels, dataset().labels[few.drawn])


def test_the_draw_is_the_seeds():
    first, again, other = (few_shot(dataset(), 8, seed).drawn for seed in (3, 3, 4))
    assert first == again != other


def test_validation_gets_four_at_most_and_other_images():
    assert few_shot(dataset("val"), 16, 0).labels.bincount().tolist() == [4, 3, 4]
    assert few_shot(dataset("val"), 2, 0).labels.bincount().tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="shots: got 0, expected at least 1"):
        few_shot(dataset(), 0, 0)

"""Corrupted data sets: their images, groups and names, the same wherever they are made."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from robustft.data.corruptions import weather
from robustft.data.corruptions.apply import corrupted
from robustft.data.corruptions.names import ALL, NAMES, Corruption, corruption_of
from robustft.data.datasets import ImageDataset
from robustft.errors import InputError

from .test_corruptions import random_image


def dataset(count=6, split="test"):
    pixels = np.stack([random_image(32, seed) for seed in range(count)])
    labels = np.arange(count) % 3
    return ImageDataset(pixels, labels, classnames=["a", "b", "c"], name="Set", split=split)


def pixels(data):
    return [np.asarray(item["image"]) for item in data]


def test_five_severities_are_one_set_with_severities_as_groups():
    data = corrupted(dataset(), Corruption("gaussian-noise"))
    assert len(data) == 30
    assert data.name == "Set (gaussian noise)"
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2] * 5
    assert data.groups.tolist() == np.repeat(range(5), 6).tolist()
    one = corrupted(dataset(), Corruption("gaussian-noise", 3))
    assert one.name == "Set (gaussian noise 3)"
    assert one.groups is None
    for a, b in zip(pixels(data)[12:18], pixels(one), strict=True):
        assert np.array_equal(a, b)
    spread = [
        np.std([image - image.mean() for image in pixels(data)[6 * s : 6 * s + 6]])
        for s in range(5)
    ]
    assert spread == sorted(spread)


def test_an_image_is_a_function_of_seed_corruption_severity_and_place():
    by = Corruption("impulse-noise", 2)
    whole, again = pixels(corrupted(dataset(), by)), pixels(corrupted(dataset(), by))
    other = pixels(corrupted(dataset(), by, seed=1))
    some = pixels(corrupted(dataset(), by).subset([4, 1], split="test"))
    assert all(map(np.array_equal, whole, again))
    assert not any(map(np.array_equal, whole, other))
    assert np.array_equal(some[0], whole[4])
    assert np.array_equal(some[1], whole[1])


def test_processes_that_load_make_the_same_images():
    data = corrupted(dataset(), Corruption("glass-blur", 1)).with_transform(np.array)
    both = [
        np.concatenate([batch["image"] for batch in DataLoader(data, batch_size=2, num_workers=n)])
        for n in (0, 2)
    ]
    assert np.array_equal(*both)


def test_images_are_told_apart_by_their_corruption():
    made = [
        (Corruption("fog"), 0),
        (Corruption("fog", 3), 0),
        (Corruption("fog"), 1),
        (Corruption("snow"), 0),
    ]
    found = {corrupted(dataset(), by, seed=seed).images.identity() for by, seed in made}
    assert len(found) == len(made)
    assert corrupted(dataset(), Corruption("fog")).images.identity() in found


def test_training_data_are_not_corrupted():
    with pytest.raises(
        InputError, match="fog-2: got the train split of Set, expected a test split"
    ):
        corrupted(dataset(split="train"), Corruption("fog", 2))


def test_what_is_no_picture_any_more_is_not_corrupted():
    ready = dataset().with_transform(lambda image: torch.zeros(3, 4, 4))
    ready.transform.deterministic = True
    with pytest.raises(InputError, match="fog: got Set, images in their tensors, expected pict"):
        corrupted(ready.preloaded(), Corruption("fog"))


def test_frosts_images_are_those_of_its_photographs(photographs):
    frosted = corrupted(dataset(), Corruption("frost", 1))
    before = frosted.images.identity()
    assert frosted[0]["image"].size == (224, 224)
    photographs[0].write_bytes(photographs[0].read_bytes() + b" ")
    assert frosted.images.identity() != before


def test_frost_without_photographs_says_where_they_are_had(monkeypatch):
    monkeypatch.setattr(weather, "_FROST_PACKAGES", ("robustft", "no_such_package"))
    weather.photographs.cache_clear()
    with pytest.raises(InputError, match=r"frost: its photographs are not here.*pip install"):
        corrupted(dataset(), Corruption("frost"))


def test_a_corruption_stands_before_the_sets_name():
    assert corruption_of("fog-3:digits") == (Corruption("fog", 3), "digits")
    assert corruption_of("jpeg-compression:imagenet@/data") == (
        Corruption("jpeg-compression"),
        "imagenet@/data",
    )
    assert [str(one) for one in corruption_of("corruptions-2:x")[0].each] == [
        f"{name}-2" for name in NAMES
    ]
    for text in ("digits", "fog", "fog-6:digits", "foggy:digits", "fog:", "base:caltech101"):
        assert corruption_of(text) == (None, text)
    assert ALL not in NAMES
    assert len(NAMES) == 15

"""Validation and frozen features: decoded once, by the workers, in the run's precision."""

import collections

import numpy as np
import pytest
import torch
from PIL import Image

from robustft.cli.app import run as command


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of two classes: six training, two validation and two test images of each."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    rng = np.random.default_rng(3)
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for index, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (24, 24, 3))
                pixels[:, 12 * index : 12 * index + 12] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def arguments(data, logs, *more):
    return [
        *("train", "--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu"),
        *("--data-location", str(data), "--id", str(data), "--template", "photo"),
        *("--batch-size", "4", "--epochs", "3", "--logs", str(logs), "--name", "run", *more),
    ]


def test_with_a_frozen_encoder_a_command_reads_every_image_once(pictures, tmp_path, monkeypatch):
    """Zero-shot evaluation, features, three validations, the last look and the evaluation."""
    from robustft.data import images

    read = collections.Counter()
    plain = images.read_picture

    def counting(path):
        read[path.relative_to(pictures)] += 1
        return plain(path)

    monkeypatch.setattr(images, "read_picture", counting)
    assert command(arguments(pictures, tmp_path, "--method", "linear-probe", "--lr", "0.1")) == 0
    assert len(read) == 20
    assert set(read.values()) == {1}


def test_validation_images_of_a_moving_encoder_are_read_once(pictures, tmp_path, monkeypatch):
    from robustft.data import images

    read = collections.Counter()
    plain = images.read_picture

    def counting(path):
        read[path.relative_to(pictures).parts[0]] += 1
        return plain(path)

    monkeypatch.setattr(images, "read_picture", counting)
    assert command(arguments(pictures, tmp_path, "--method", "ft", "--lr", "1e-3")) == 0
    assert read == {"train": 3 * 12, "val": 4, "test": 4}


@pytest.mark.parametrize("method", ["linear-probe", "dive"])
def test_workers_load_all_images_and_change_nothing(run, same, world, monkeypatch, method):
    """Training, frozen features, reference pairs and validation."""
    from robustft.data import loading
    from robustft.train import batches

    asked = []

    class Recording(batches.DataLoader):
        def __init__(self, *args, num_workers=0, **options):
            asked.append(num_workers)
            super().__init__(*args, num_workers=num_workers, **options)

    picture = world.clip.preprocess_val
    raw = world.raw.subset(range(12), split="train").with_transform(picture)
    monkeypatch.setattr(world, "val", world.raw.subset(range(9), split="val"))
    pairs = world.reference
    if method == "dive":
        from robustft.data import load_reference

        pairs = load_reference("glyphs", n=20).with_transform(picture)
    monkeypatch.setattr(world, "reference", pairs)
    for module in (batches, loading):
        monkeypatch.setattr(module, "DataLoader", Recording)
    config = {"train": raw, "batch_size": 6, "epochs": 1}
    one = run(method, workers=2, **config)
    assert len(asked) >= 2
    assert set(asked) == {2}
    two = run(method, workers=0, **config)
    assert same(one.classifier, two.classifier)
    assert one.val_top1 == two.val_top1


@pytest.mark.parametrize("method", ["ft", "linear-probe"])
def test_features_and_validation_have_the_precision_of_the_run(run, world, monkeypatch, method):
    seen = []
    model = type(world.clip.model)
    plain = model.encode_image

    def watching(self, *args, **options):
        seen.append(torch.is_autocast_enabled("cpu"))
        return plain(self, *args, **options)

    monkeypatch.setattr(model, "encode_image", watching)
    run(method, precision="bf16", epochs=1)
    assert len(seen) >= 2
    assert all(seen)
    del seen[:]
    run(method, precision="fp32", epochs=1)
    assert not any(seen)


def test_kept_features_give_the_accuracy_of_the_images(world, monkeypatch):
    """Until they are let go of: with a moved encoder they would be wrong."""
    from robustft.models import Classifier
    from robustft.train.validate import Validation

    classifier = Classifier.zero_shot(world.clip, world.val.classnames, world.templates)
    validation = Validation(world.val, batch_size=8, device="cpu")
    accuracy = validation.top1(classifier)
    validation.keep_features(classifier)
    calls = []
    plain = Classifier.features

    def counting(self, images):
        calls.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(Classifier, "features", counting)
    assert validation.top1(classifier) == accuracy
    assert calls == []
    classifier.head.weight.data.neg_()
    assert validation.top1(classifier) != accuracy
    validation.keep_features(None)
    validation.top1(classifier)
    assert sum(calls) == len(world.val)


def test_names_of_one_class_are_one_class_in_validation():
    from robustft.data import load_dataset
    from robustft.models import Classifier, load_clip
    from robustft.train.validate import top1

    clip = load_clip("robustft-tiny", "glyphs")
    data = load_dataset("digits", "val").preloaded(clip.preprocess_val)
    plain = Classifier.zero_shot(clip, data.classnames, data.templates)
    expected = top1(plain, data, batch_size=64, device="cpu")
    # Each digit has a first name that says nothing, whose logit is never the higher one.
    weight = torch.zeros(20, plain.head.weight.shape[1])
    weight[1::2] = plain.head.weight
    names = [name for digit in data.classnames for name in (f"no {digit}", digit)]
    both = Classifier(clip.model, weight, None, names)
    both.head.bias.data[0::2] = -100.0
    data.labels = 2 * data.labels
    data.merged = [[2 * digit, 2 * digit + 1] for digit in range(10)]
    assert top1(both, data, batch_size=64, device="cpu") == expected > 0.5

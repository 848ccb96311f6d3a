"""The handwritten digits: splits and shifts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from robustft.data import built_in_names, load_dataset
from robustft.data.digits import digit_shifts, digits, scans
from robustft.errors import InputError


def test_scans_are_the_digits_enlarged():
    coverage, labels = scans()
    bunch = load_digits()
    assert labels.tolist() == bunch.target.tolist()
    # Averaged back to 8 × 8 inside the margin (20 / 8 = 2.5 pixels), the scan returns.
    inner = torch.from_numpy(coverage[:, 2:22, 2:22])[:, None]
    small = torch.nn.functional.interpolate(inner, (40, 40), mode="nearest")
    small = torch.nn.functional.avg_pool2d(small, 5)[:, 0].numpy()
    assert np.abs(small - bunch.images / 16).mean() < 0.06
    correlation = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(small, bunch.images, strict=True)
    ]
    assert min(correlation) > 0.95


def test_splits_are_disjoint_covering_and_stratified():
    parts = [digits(split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [1079, 359, 359]
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        counts = part.labels.bincount(minlength=10) / scans()[1].bincount()
        assert (counts - share).abs().max() < 0.005
    images = [image.tobytes() for part in parts for image in part.images.pixels]
    others = [digits(split, seed=1) for split in ("train", "val", "test")]
    assert set(images) == {image.tobytes() for part in others for image in part.images.pixels}


def test_the_seed_decides_the_split():
    assert np.array_equal(digits("test").images.pixels, digits("test", 0).images.pixels)
    assert not np.array_equal(digits("test").images.pixels, digits("test", 1).images.pixels)
    with pytest.raises(InputError, match="of 'digits', expected one of train, val, test"):
        digits("all")


def test_plain_digits_are_dark_on_light():
    pixels = digits("test").images.pixels
    assert pixels.shape == (359, 24, 24, 3)
    assert np.median(pixels[:, 0]) > 230
    assert np.median(pixels.min((1, 2, 3))) < 40


def test_shifts_keep_labels_and_size_and_change_the_pixels():
    plain = digits("test", 3)
    shifts = digit_shifts(3)
    assert len(shifts) >= 6
    for name, shifted in shifts.items():
        assert torch.equal(shifted.labels, plain.labels), name
        assert shifted.images.pixels.shape == plain.images.pixels.shape
        difference = np.abs(shifted.images.pixels.astype(float) - plain.images.pixels)
        assert difference.mean() > 8, name
        again = load_dataset(f"digits-{name}", "test", seed=3)
        assert np.array_equal(again.images.pixels, shifted.images.pixels), name
        assert (again.name, again.split, again.classnames) == (
            f"Digits-{name}",
            "test",
            plain.classnames,
        )


def test_what_each_shift_does():
    plain = digits("test").images.pixels.astype(float)
    shifts = {name: data.images.pixels.astype(float) for name, data in digit_shifts().items()}
    assert np.abs(shifts["inverted"] - (262.65 - plain)).max() < 2
    # Saturated colours: the channels differ, and not in plain or noise alike.
    assert np.median(np.ptp(shifts["ink"], axis=-1).max((1, 2))) > 100
    noise = shifts["noise"] - plain
    grey = (plain > 90) & (plain < 160)
    assert noise[grey].std() == pytest.approx(0.25 * 255, rel=0.1)
    assert shifts["texture"][:, :2].std(axis=(1, 2)).mean() > 5
    sharp = np.abs(np.diff(plain, axis=1)).max((1, 2, 3))
    assert (np.abs(np.diff(shifts["lowres"], axis=1)).max((1, 2, 3)) < 0.8 * sharp).mean() > 0.95
    # Print is crisp where the scans are smooth, whatever is done to it afterwards.
    assert np.abs(np.diff(shifts["fonts"], axis=1)).max((1, 2, 3)).mean() > 1.3 * sharp.mean()
    assert np.median(np.ptp(shifts["fonts-ink"], axis=-1).max((1, 2))) > 100
    assert np.median(shifts["fonts-inverted"]) < 40


def test_shifts_are_test_sets():
    with pytest.raises(InputError, match="'digits-noise' is a test set: it has no 'val' split"):
        load_dataset("digits-noise", "val")
    assert len(built_in_names()) >= 9
    for name in built_in_names():
        data = load_dataset(name, "test")
        assert data.split == "test"
        assert data.templates
        assert len(data.classnames) > int(data.labels.max())


def test_built_in_names_and_templates_can_be_replaced():
    names = [f"number {i}" for i in range(10)]
    data = load_dataset("digits", "val", classnames=names, templates=["{}"])
    assert (data.classnames, data.templates) == (names, ["{}"])
    assert load_dataset("digits", "val").classnames[0] == "zero"
    with pytest.raises(InputError, match="classnames has 3 names for the 10 classes of 'digits'"):
        load_dataset("digits", "val", classnames=names[:3])

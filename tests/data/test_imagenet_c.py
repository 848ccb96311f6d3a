"""ImageNet-C as released: severities of a corruption are one set, in either way of unpacking."""

import shutil

import numpy as np
import pytest

from robustft.data import load_dataset
from robustft.data.corruptions.names import NAMES, Corrupted, Corruption
from robustft.data.registry.known import REGISTRY
from robustft.data.registry.suites import suite
from robustft.errors import InputError, InputWarning
from tests.layouts import colour, imagenet_c

SOME = {
    "fog": "weather",
    "jpeg_compression": "digital",
    "gaussian_noise": "noise",
    "zoom_blur": "blur",
}


@pytest.fixture(scope="module", params=[("imagenet-c", True), ("ImageNet-C", False)])
def root(request, tmp_path_factory):
    home, nested = request.param
    folder = tmp_path_factory.mktemp("c")
    imagenet_c(folder / home, SOME, nested=nested)
    return folder


def load(name, root):
    with pytest.warns(InputWarning, match="got 15 images, expected 250,000"):
        return load_dataset(f"partial:imagenet-c-{name}@{root}", "test")


@pytest.mark.parametrize("folder", SOME)
def test_severities_are_groups_under_imagenets_labels(root, folder):
    name = folder.replace("_", "-")
    data = load(name, root)
    assert data.name == f"ImageNet-C ({folder.replace('_', ' ')})"
    assert data.labels.tolist() == [0, 1, 2] * 5
    assert data.groups.tolist() == np.repeat(range(5), 3).tolist()
    assert data.class_subset.tolist() == [0, 1, 2]
    assert data.corrupted == Corrupted(Corruption(name), "ImageNet-C", imagenet=True)
    for row in range(15):
        label, severity = int(data.labels[row]), int(data.groups[row]) + 1
        assert tuple(np.asarray(data[row]["image"])[0, 0]) == colour(10 * label + severity)


def test_all_fifteen_are_registered_with_what_they_should_hold():
    sets = suite("imagenet-c")
    assert sets["id"] == ("imagenet",)
    assert sets["ood"] == tuple(f"imagenet-c-{name}" for name in NAMES)
    for name in NAMES:
        entry = REGISTRY[f"imagenet-c-{name}"]
        assert entry.options["corruption"] == name
        assert entry.title == f"ImageNet-C ({name.replace('-', ' ')})"
        part = entry.parts["test"]
        assert all(place.endswith("/" + name.replace("-", "_")) for place in part.at)
        assert (part.images, part.classes) == (5 * 50_000, 1000)


def test_what_is_missing_is_said(tmp_path):
    imagenet_c(tmp_path / "imagenet-c", {"fog": "weather"})
    with pytest.raises(InputError, match="got 15 images, expected 250,000 and 3 classes"):
        load_dataset(f"imagenet-c-fog@{tmp_path}", "test")
    shutil.rmtree(tmp_path / "imagenet-c" / "weather" / "fog" / "4")
    with pytest.raises(InputError, match=r"no severity 4 in .*expected folders 1 to 5"):
        load_dataset(f"imagenet-c-fog@{tmp_path}", "test")
    with pytest.warns(InputWarning, match="got 12 images"):
        data = load_dataset(f"partial:imagenet-c-fog@{tmp_path}", "test")
    assert sorted(set(data.groups.tolist())) == [0, 1, 2, 4]
    (tmp_path / "imagenet-c" / "weather" / "fog" / "1" / "cat").mkdir()
    with pytest.raises(InputError, match="expected class folders called by wnids"):
        load_dataset(f"partial:imagenet-c-fog@{tmp_path}", "test")

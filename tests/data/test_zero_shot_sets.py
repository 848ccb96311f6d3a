"""The ten sets of zero-shot tables, in CoOp's layout and in torchvision's."""

import json

import numpy as np
import pytest

from robustft.data import load_dataset, registry
from robustft.data.registry.load import read
from robustft.data.registry.suites import suite
from robustft.errors import InputError, InputWarning
from tests.layouts import COOP, aircraft, colour, coop, torchvision_set, zero_shot_suite

TORCHVISION = (
    "caltech101",
    "oxford-pets",
    "stanford-cars",
    "food101",
    "sun397",
    "dtd",
    "eurosat",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coop")
    zero_shot_suite(folder)
    return folder


def load(name, root, split="test"):
    with pytest.warns(InputWarning, match="got .* expected"):
        return load_dataset(f"partial:{name}@{root}", split)


def check_pixels(data):
    for row in range(len(data)):
        pixel = tuple(np.asarray(data[row]["image"])[0, 0].tolist())
        assert pixel == colour(int(data.labels[row]))


@pytest.mark.parametrize("name", suite("zero-shot")["forgetting"])
def test_every_set_of_the_suite_is_read_from_coops_folders(root, name):
    sizes = {split: len(load(name, root, split)) for split in ("train", "val", "test")}
    assert sizes["val"] == sizes["test"] == 6
    data = load(name, root)
    check_pixels(data)
    assert len(data.classnames) == 3
    assert "_" not in "".join(data.classnames)
    assert len(data.templates) == 1


def test_eurosats_classes_are_called_by_words(root):
    assert load("eurosat", root).classnames[:2] == ["Annual Crop Land", "big cat"]
    assert load("dtd", root).classnames[:2] == ["AnnualCrop", "big cat"]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_layouts_are_read_through_torchvision(tmp_path, name):
    torchvision_set(tmp_path, name)
    data = load(name, tmp_path)
    assert len(data) == 6
    assert sorted(data.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert [x.lower().split("/")[-1] for x in data.classnames] == ["a cat", "b dog", "c fox"]
    check_pixels(data)


def test_torchvisions_flowers(tmp_path, monkeypatch):
    """Its files of labels are known to it by their checksums, which these have not."""
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    torchvision_set(tmp_path, "flowers102")
    data = load("flowers102", tmp_path)
    assert data.labels.tolist() == [0, 1, 2]
    assert data.classnames[:2] == ["pink primrose", "hard-leaved pocket orchid"]
    check_pixels(data)


def test_validation_is_carved_where_a_layout_has_none(tmp_path):
    torchvision_set(tmp_path, "food101", each=4)
    train, val = (load("food101", tmp_path, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (9, 3)


def test_torchvisions_layout_of_aircraft_needs_no_torchvision(tmp_path):
    aircraft(tmp_path, "fgvc-aircraft-2013b/data")
    data = load("fgvc-aircraft", tmp_path)
    assert data.classnames == ["707-320", "A318 mini", "Yak-42"]
    check_pixels(data)


def test_coops_split_file_goes_before_torchvisions_layout(tmp_path):
    torchvision_set(tmp_path, "eurosat", each=5)
    coop(tmp_path, "eurosat")
    assert len(load("eurosat", tmp_path)) == 6


def test_base_and_novel_classes_have_labels_of_their_own(root):
    base, novel = (load(f"{half}:caltech101", root) for half in ("base", "novel"))
    assert (base.classnames, novel.classnames) == (["AnnualCrop", "big cat"], ["sea"])
    assert base.labels.tolist() == [0, 0, 1, 1]
    assert novel.labels.tolist() == [0, 0]
    assert novel.name == "Caltech101 (novel)"
    check_pixels(base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("test"), "expected lists train, val and test"),
        (lambda x: x["test"][0].pop(), "expected lists train, val and test"),
        (lambda x: x["val"].append(["x.jpg", 7, "y"]), "got 4 labels up to 7, expected 0 to 3"),
        (lambda x: x["test"].append(["../../secret.jpg", 0, "y"]), "expected one below"),
    ],
)
def test_a_split_file_that_is_none_is_refused(tmp_path, change, message):
    coop(tmp_path, "dtd")
    path = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))
    with pytest.raises(InputError, match=message):
        load_dataset(f"partial:dtd@{tmp_path}", "test")


def test_a_split_file_without_its_images_says_so(tmp_path):
    coop(tmp_path, "food101")
    (tmp_path / "food-101" / "images").rename(tmp_path / "food-101" / "elsewhere")
    with pytest.raises(InputError, match=r"Food101\.json without its images in .*images"):
        load_dataset(f"food101@{tmp_path}", "test")


def test_damage_that_torchvision_finds_names_the_set(tmp_path):
    torchvision_set(tmp_path, "food101")
    (tmp_path / "food-101/meta/test.json").write_text('{"a_cat": ["a')
    with pytest.raises(InputError, match=r"torchvision\.datasets\.Food101 does not read"):
        load_dataset(f"food101@{tmp_path}", "test")


def test_a_folder_of_no_layout_that_is_known_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    part = registry.Part(("x",))
    entry = registry.DataSet("odd", "zero-shot", {"test": part}, options={"torchvision": "utils"})
    spec = registry.Spec("odd", str(tmp_path))
    with pytest.raises(InputError, match="torchvision: utils, expected a split file, or one of"):
        read(entry, spec, "test", tmp_path / "x")


def test_all_of_coops_names_are_in_the_suite():
    assert {*COOP, "fgvc-aircraft"} == set(suite("zero-shot")["forgetting"])

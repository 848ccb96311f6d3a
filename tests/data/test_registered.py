"""CIFAR, STL and WILDS as they are unpacked: labels, splits, groups, and what is refused."""

import os
import pickle

import numpy as np
import pytest

from robustft.data import load_dataset
from robustft.data.registry.cifar import CLASSES
from robustft.data.unpickle import read_arrays
from robustft.errors import InputError, InputWarning
from tests.layouts import FMOW_REGIONS, cifar, colour, fmow, iwildcam


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for write in (cifar, iwildcam, fmow):
        write(folder)
    return folder


def load(name, root, split="test"):
    with pytest.warns(InputWarning, match="got .* expected"):
        return load_dataset(f"partial:{name}@{root}", split)


def pixel(dataset, row):
    return tuple(np.asarray(dataset[row]["image"])[0, 0].tolist())


@pytest.mark.parametrize("name", ["cifar10", "cifar10.1", "cifar10.2"])
def test_cifars_are_read_with_their_labels(root, name):
    data = load(name, root)
    assert data.classnames == list(CLASSES)
    assert len(data) == 20
    assert data[3]["image"].size == (32, 32)
    for row in range(20):
        assert pixel(data, row) == (10 * int(data.labels[row]),) * 3


def test_cifars_training_data_are_all_five_batches(root):
    assert len(load("cifar10", root, "train")) + len(load("cifar10", root, "val")) == 100


def test_stl_has_cifars_labels_without_the_monkey_and_upright(root):
    data = load("stl10", root)
    assert len(data) == 18
    assert data.class_subset.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    order = [CLASSES[label] for label in data.labels[:9]]
    names = ["airplane", "bird", "automobile", "cat", "deer", "dog", "horse", "ship", "truck"]
    assert order == names
    image = np.asarray(data[0]["image"])
    assert image[:, :48].min() == 255
    assert image[:, 48:].max() == 0


def test_a_cut_off_file_is_said(root, tmp_path):
    cifar(tmp_path)
    images = tmp_path / "stl10_binary" / "test_X.bin"
    images.write_bytes(images.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"expected a multiple of 27,648; is it cut off\?"):
        load_dataset(f"partial:stl10@{tmp_path}", "test")
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(batch.read_bytes()[:1000])
    with pytest.raises(InputError, match="test_batch: not a dictionary of arrays"):
        load_dataset(f"partial:cifar10@{tmp_path}", "test")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(InputError, match="no data_batch_3 in"):
        load_dataset(f"partial:cifar10@{tmp_path}", "train")


class _Harmful:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["cifar10", "cifar10.2"])
def test_nothing_in_a_pickle_is_executed(tmp_path, name):
    cifar(tmp_path)
    trap = tmp_path / "trap"
    if name == "cifar10":
        held = pickle.dumps({b"data": _Harmful(trap), b"labels": []})
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(held)
    else:
        held = {"images": _Harmful(trap), "labels": []}
        np.save(tmp_path / "CIFAR-10.2" / "cifar102_test.npy", held, allow_pickle=True)
    with pytest.raises(InputError, match=r"asks for posix\.mkdir"):
        load_dataset(f"partial:{name}@{tmp_path}", "test")
    assert not trap.exists()


def test_an_array_of_numbers_is_no_dictionary(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    with pytest.raises(InputError, match="got an array of int64, expected a dictionary"):
        read_arrays(tmp_path / "x.npy", npy=True)


def test_iwildcams_splits_labels_and_locations(root):
    sizes = {split: len(load("iwildcam", root, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 8, "val": 8, "test": 8}
    data = load("iwildcam-ood", root)
    assert data.metrics == ("macro-f1",)
    assert data.classnames == [f"canis {label}" for label in range(4)]
    assert data.groups.tolist() == [0, 1] * 4
    for row in range(len(data)):
        assert data[row]["image"].size == (8, 8)
        assert pixel(data, row) == colour(int(data.labels[row]))
    numbers = [int(path.stem) for path in data.images.paths]
    assert numbers == list(range(16, 24)), "the rows of the split test alone"


@pytest.mark.parametrize(
    ("name", "split", "years"),
    [
        ("fmow", "train", {2010}),
        ("fmow", "val", {2010}),
        ("fmow", "test", {2010}),
        ("fmow-ood", "val", {2013, 2015}),
        ("fmow-ood", "test", {2016, 2017}),
    ],
)
def test_fmows_official_splits_go_by_date(root, name, split, years):
    data = load(name, root, split)
    assert len(data) == 8 * len(years)
    # A split has 5 years × 2 categories × 4 countries; seq comes first and keeps its numbers.
    first = {"train": 40, "val": 80, "test": 120}[split]
    numbers = [int(path.stem.removeprefix("rgb_img_")) for path in data.images.paths]
    found = {(2010, 2013, 2015, 2016, 2017)[(n - first) // 8] for n in numbers}
    assert found == years
    for row in range(len(data)):
        assert pixel(data, row) == colour(int(data.labels[row]))


def test_fmows_regions_leave_out_other(root):
    data = load("fmow-ood", root)
    assert data.group_names == sorted(FMOW_REGIONS.values())
    named = [data.group_names[group] if group >= 0 else None for group in data.groups[:4]]
    assert named == ["Europe", "Africa", "Americas", None]
    assert data.classnames == ["airport", "zoo park"]


def test_a_half_unpacked_set_names_the_first_missing_image(root, tmp_path):
    iwildcam(tmp_path)
    (tmp_path / "iwildcam_v2.0" / "train" / "16.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 8 images are missing, the first is .*16\.jpg"):
        load_dataset(f"iwildcam-ood@{tmp_path}", "test")
    assert len(load("iwildcam-ood", tmp_path)) == 7


def test_a_table_without_a_column_is_refused(tmp_path):
    iwildcam(tmp_path)
    (tmp_path / "iwildcam_v2.0" / "metadata.csv").write_text("split,y\ntest,0\n")
    with pytest.raises(InputError, match=r"got the columns split, y, expected 'filename' too"):
        load_dataset(f"partial:iwildcam@{tmp_path}", "test")

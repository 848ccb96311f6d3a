"""ImageNet and its shifts as people have them on disk: labels, classes, counts, refusals."""

import numpy as np
import pytest

from robustft.data import load_dataset
from robustft.data.registry.imagenet import imagenet_classes, wnids
from robustft.errors import InputError, InputWarning
from tests.layouts import IMAGENET_LAYOUTS, OBJECTNET, colour, imagenet, imagenet_suite, objectnet


@pytest.fixture(scope="module", params=IMAGENET_LAYOUTS)
def root(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    imagenet_suite(folder, request.param)
    return folder


def load(name, root, split="test"):
    with pytest.warns(InputWarning, match="got .* expected"):
        return load_dataset(f"partial:{name}@{root}", split)


def pixel(dataset, row):
    return tuple(np.asarray(dataset[row]["image"])[0, 0])


@pytest.mark.parametrize(
    ("name", "images", "classes"),
    [
        ("imagenet", 1000, 1000),
        ("imagenet-v2", 1000, 1000),
        ("imagenet-r", 200, 200),
        ("imagenet-a", 200, 200),
        ("imagenet-sketch", 1000, 1000),
        ("objectnet", 6, 3),
    ],
)
def test_every_set_is_found_with_imagenets_labels(root, name, images, classes):
    data = load(name, root)
    assert len(data) == images
    assert data.label_space == imagenet_classes()
    assert len(data.templates) == 80
    present = data.labels.unique()
    assert len(present) == classes
    assert (data.class_subset is None) == (classes == 1000)
    if data.class_subset is not None:
        assert data.class_subset.tolist() == present.tolist()
    # The colour was made from the label; string order of V2's folders would be 0, 1, 10, 100.
    for row in range(0, images, 97 if images > 97 else 1):
        assert pixel(data, row) == colour(int(data.labels[row]))


def test_r_and_a_have_timms_classes(root):
    for short in "ra":
        subset = load(f"imagenet-{short}", root).class_subset
        assert [imagenet_classes().classes[i] for i in subset] == wnids(f"imagenet_{short}")


def test_validation_is_carved_from_train(root):
    train, val = (load("imagenet", root, split) for split in ("train", "val"))
    assert len(train) == len(val) == 1000
    assert not set(train.images.paths) & set(val.images.paths)


def test_objectnet_merges_classes_and_loses_its_border(root):
    data = load("objectnet", root)
    assert data.merged == [list(labels) for _, _, labels in OBJECTNET]
    assert data[0]["image"].size == (8, 8)
    assert pixel(data, 0) == colour(409)
    assert {path.parent.name for path in data.images.paths} == {f for f, _, _ in OBJECTNET}
    rows = data.subset([5, 0], split="test")
    assert rows[1]["image"].size == (8, 8)


def test_a_part_is_refused_unless_it_is_said_to_be_one(root):
    with pytest.raises(InputError, match=r"imagenet-r test in .*: got 200 images, expected 30,000"):
        load_dataset(f"imagenet-r@{root}", "test")


@pytest.mark.parametrize("each", [1, 2])
def test_lacking_classes_are_a_half_unpacked_archive(tmp_path, each):
    imagenet(
        tmp_path, "imagenet-r", each=each, subset="imagenet_r", folders=wnids("imagenet_r")[:150]
    )
    with pytest.raises(InputError, match="150 classes, expected 200; is an archive half unpacked"):
        load_dataset(f"imagenet-r@{tmp_path}", "test")


def test_an_empty_class_folder_does_not_count(tmp_path):
    imagenet(tmp_path, "imagenet-a", subset="imagenet_a", folders=wnids("imagenet_a")[1:])
    (tmp_path / "imagenet-a" / wnids("imagenet_a")[0]).mkdir()
    with pytest.raises(InputError, match="199 classes, expected 200"):
        load_dataset(f"imagenet-a@{tmp_path}", "test")


def test_a_flat_validation_folder_is_explained(tmp_path):
    flat = tmp_path / "imagenet" / "val"
    flat.mkdir(parents=True)
    for number in (1, 2):
        (flat / f"ILSVRC2012_val_0000000{number}.JPEG").touch()
    with pytest.raises(InputError, match=r"holds 2 images side by side, as ILSVRC2012_img_val.tar"):
        load_dataset(f"imagenet@{tmp_path}", "test")


def test_archives_of_classes_are_told(tmp_path):
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    (tmp_path / "imagenet" / "train" / "n01440764.tar").touch()
    with pytest.raises(InputError, match=r"1 archives such as n01440764\.tar to unpack"):
        load_dataset(f"imagenet@{tmp_path}", "train")


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("imagenet-v2", "n01440764", "called by its labels, 0 to 999"),
        ("imagenet-sketch", "cat", "called by wnids"),
        ("imagenet-r", "n01440764", "the 200 classes of ImageNet-R alone"),
    ],
)
def test_folders_of_another_set_are_refused(tmp_path, name, folder, message):
    place = {"imagenet-v2": "ImageNetV2-matched-frequency", "imagenet-sketch": "sketch"}
    home = tmp_path / place.get(name, name) / folder
    home.mkdir(parents=True)
    (home / "x.png").touch()
    with pytest.raises(InputError, match=message):
        load_dataset(f"{name}@{tmp_path}", "test")


def test_what_is_nowhere_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"looked for sketch, .*\(download: https"):
        load_dataset(f"imagenet-sketch@{tmp_path}", "test")
    with pytest.raises(InputError, match="'train' split, expected test"):
        load_dataset(f"imagenet-sketch@{tmp_path}", "train")


def test_objectnet_without_its_mappings_says_which_file(tmp_path):
    objectnet(tmp_path / "objectnet-1.0")
    (tmp_path / "objectnet-1.0/mappings/imagenet_to_label_2012_v2").unlink()
    with pytest.raises(InputError, match="no imagenet_to_label_2012_v2 in"):
        load_dataset(f"partial:objectnet@{tmp_path}", "test")

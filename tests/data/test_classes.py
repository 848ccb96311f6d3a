"""Classes are their folders or indices: names may repeat, numbers sort as numbers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from robustft.data import load_dataset
from robustft.data.classes import LabelSpace, places, sorted_folders
from robustft.data.datasets import ImageDataset
from robustft.errors import InputError

BIRDS = ["crane", "heron", "crane"]  # the bird and the machine


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def value(dataset, row):
    return int(np.asarray(dataset[row]["image"])[0, 0, 0])


@pytest.fixture
def cranes(tmp_path):
    for number, folder in enumerate(("n1", "n2", "n3")):
        save(tmp_path / "test" / folder / "a.png", number)
    return tmp_path


@pytest.mark.parametrize("how", ["mapping", "beside", "list", "file"])
def test_two_folders_of_one_name_stay_two_classes(cranes, tmp_path, how):
    given = None
    if how == "mapping":
        (cranes / "classnames.txt").write_text("n3\tcrane\nn1\tcrane\nn2\theron\n")
    elif how == "beside":
        (cranes / "classnames.txt").write_text("\n".join(BIRDS))
    elif how == "list":
        given = BIRDS
    else:
        given = tmp_path / "names.txt"
        given.write_text("n1\tcrane\nn2\theron\nn3\tcrane\n")
    data = load_dataset(cranes, "test", classnames=given)
    assert data.labels.tolist() == [0, 1, 2]
    assert (data.classnames, data.classes) == (BIRDS, ["n1", "n2", "n3"])
    assert data.class_subset is None


def test_a_name_that_stands_twice_is_not_guessed(cranes):
    (cranes / "classnames.txt").write_text("n1\tcrane\nn2\theron\nn3\tstork\n")
    with pytest.raises(InputError, match=r"'crane' stands twice.*folder<TAB>name"):
        load_dataset(cranes, "test", classnames=["crane", "stork", "heron", "crane"])
    more = "n0\tcrane\nn1\tcrane\nn2\theron\nn3\tstork\n"
    (cranes / "all.txt").write_text(more)
    data = load_dataset(cranes, "test", classnames=cranes / "all.txt")
    assert data.labels.tolist() == data.class_subset.tolist() == [1, 2, 3]
    assert data.classnames == ["crane", "crane", "heron", "stork"]


def test_one_name_twice_in_a_table_and_a_built_in_set(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", number)
    (tmp_path / "classnames.txt").write_text("\n".join(BIRDS) + "\n\n")
    table = tmp_path / "birds-test.csv"
    table.write_text("path,label\n0.png,2\n1.png,0\n2.png,1\n")
    data = load_dataset(table, "test")
    assert (data.labels.tolist(), data.classnames) == ([2, 0, 1], BIRDS)
    assert data.classes == ["0", "1", "2"]
    (tmp_path / "classnames.txt").write_text("2\tcrane\n0\tcrane\n1\theron\n")
    assert load_dataset(table, "test").classnames == ["crane", "heron", "crane"]
    (tmp_path / "classnames.txt").write_text("3\tcrane\n0\tcrane\n1\theron\n")
    with pytest.raises(InputError, match=r"expected the labels 0\.\.2, each once"):
        load_dataset(table, "test")
    assert load_dataset("digits", "test", classnames=["same"] * 10).classnames == ["same"] * 10


@pytest.mark.parametrize("count", [12, 101])
@pytest.mark.parametrize("how", ["beside", "list", "mapping"])
def test_numbered_folders_are_in_the_order_of_their_numbers(tmp_path, count, how):
    names = [f"name {i}" for i in range(count)]
    for number in range(count):
        save(tmp_path / "test" / str(number) / "a.png", number)
    lines = names if how == "beside" else [f"{i}\t{n}" for i, n in enumerate(names)]
    if how != "list":
        (tmp_path / "classnames.txt").write_text("\n".join(lines))
    data = load_dataset(tmp_path, "test", classnames=names if how == "list" else None)
    assert data.classes == [str(i) for i in range(count)]
    for row in (0, 2, 9, 10, 11, count - 1):
        assert data.classnames[data.labels[row]] == names[value(data, row)]


def test_a_part_of_numbered_folders_keeps_its_numbers(tmp_path):
    for number in (2, 10):
        save(tmp_path / "test" / str(number) / "a.png", number)
    names = [f"name {i}" for i in range(12)]
    data = load_dataset(tmp_path, "test", classnames=names)
    assert data.labels.tolist() == data.class_subset.tolist() == [2, 10]
    (tmp_path / "classnames.txt").write_text("\n".join(names))
    assert load_dataset(tmp_path, "test").labels.tolist() == [2, 10]


def test_an_order_in_doubt_demands_a_mapping(tmp_path):
    for number in (1, 2, 10):
        save(tmp_path / "test" / f"class_{number}" / "a.png", number)
    assert load_dataset(tmp_path, "test").classnames == ["class_1", "class_2", "class_10"]
    with pytest.raises(InputError, match=r"in doubt \('class_1' or|in doubt \('class_2' or"):
        load_dataset(tmp_path, "test", classnames=["a", "b", "c"])
    (tmp_path / "classnames.txt").write_text("class_1\ta\nclass_10\tc\nclass_2\tb\n")
    assert load_dataset(tmp_path, "test").classnames == ["a", "b", "c"]


def test_folders_sort_by_their_numbers_and_otherwise_as_strings():
    assert sorted_folders(["10", "9", "010", "1"]) == ["1", "9", "010", "10"]
    plain = ["cat 2", "cat", "a b", "a1", "n02", "n01", "Ä", "z"]
    assert sorted_folders(plain) == sorted(plain)


def space(names, classes=None):
    return LabelSpace([str(i) for i in range(len(names))] if classes is None else classes, names)


def test_places_of_one_label_space_in_another():
    train = space([*BIRDS, "stork"], ["n1", "n2", "n3", "n4"])
    assert places(space(["crane", "stork"], ["n3", "n4"]), train) == [2, 3]
    assert places(space(["Kranich"], ["n3"]), train) == [2]  # a folder counts before a name
    assert places(space([*BIRDS, "stork"]), train) == [0, 1, 2, 3]
    assert places(space(["stork", "heron"]), train) == [3, 1]
    assert places(space(["owl"]), train) is None
    assert places(space(["heron", "owl"]), train) is None
    with pytest.raises(InputError, match="'crane' stands twice"):
        places(space(["crane", "heron"]), train)
    numbers = space(["zero", "one", "two"])
    assert places(space(["2", "0"], ["2", "0"]), numbers) == [2, 0]
    assert places(space(["ant", "bee", "two"]), numbers) is None  # numbers alone say nothing


def test_a_dataset_has_as_many_different_classes_as_names():
    pixels = np.zeros((1, 4, 4, 3), np.uint8)
    for classes in (["a"], ["a", "a"]):
        with pytest.raises(InputError, match="expected 2, one a class name"):
            ImageDataset(pixels, [0], classnames=["x", "x"], classes=classes, name="d", split="t")


@pytest.mark.parametrize("how", ["folders", "table"])
def test_the_thousand_imagenet_names_train_and_evaluate(tmp_path, how):
    open_clip = pytest.importorskip("open_clip")
    import torch

    from robustft.evaluate import collect
    from robustft.evaluate.metrics import top1
    from robustft.methods import make_method
    from robustft.models import Classifier, load_clip
    from robustft.train import TrainConfig, Trainer

    names = list(open_clip.IMAGENET_CLASSNAMES)
    assert len(set(names)) < 1000
    labels = [657, 744, 836, 837, 134, 517, 3, 999]
    if how == "folders":
        for label in range(1000):
            save(tmp_path / "train" / f"n{label:08d}" / "a.png", label % 256)
        lines = [f"n{label:08d}\t{name}" for label, name in enumerate(names)]
        for label in labels:
            save(tmp_path / "test" / f"n{label:08d}" / "a.png", label % 256)
        (tmp_path / "classnames.txt").write_text("\n".join(lines))
        test = load_dataset(tmp_path, "test")
        assert load_dataset(tmp_path, "train", val_fraction=0.01).classnames == names
    else:
        for label in labels:
            save(tmp_path / f"{label}.png", label % 256)
        (tmp_path / "classnames.txt").write_text("\n".join(names))
        rows = "".join(f"{label}.png,{label}\n" for label in labels)
        (tmp_path / "t-test.csv").write_text("path,label\n" + rows)
        test = load_dataset(tmp_path / "t-test.csv", "test")
    clip = load_clip("robustft-tiny", "glyphs")
    assert sorted(test.labels.tolist()) == sorted(labels)
    assert test.classnames == names
    head = Classifier.zero_shot(clip, names, "photo")
    out = collect(head, test.with_transform(clip.preprocess_val))
    assert out.logits.shape == (8, 1000)
    assert torch.equal(out.logits[:, 657], out.logits[:, 744])  # "missile" and "missile"
    assert 0 <= top1(out.logits, out.labels, out.class_subset) <= 1
    config = TrainConfig(epochs=1, batch_size=4, warmup=0, lr=1e-3, device="cpu")
    train = test.subset(range(len(test)), split="train").preloaded(clip.preprocess_val)
    trainer = Trainer(
        make_method("ft"), clip, train, None, config, templates=["a photo of a {}."], progress=False
    )
    tuned = trainer.run()
    assert tuned.classnames == names
    out = collect(tuned, test.with_transform(clip.preprocess_val))
    assert not torch.equal(out.logits[:, 657], out.logits[:, 744])

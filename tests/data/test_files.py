"""Image folders and tables: round trips on written-out data, and every refusal."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from robustft.data import load_dataset, load_reference
from robustft.errors import InputError


def colour(index):
    return (index * 7 % 256, index * 31 % 256, 200)


def save(path, index):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 5), colour(index)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two splits of three classes; image number i is one flat colour."""
    index = 0
    for split, count in (("train", 20), ("test", 3)):
        for name in ("n01", "n02", "n03"):
            for number in range(count):
                save(tmp_path / "flowers" / split / name / f"{number:02d}.png", index)
                index += 1
    return tmp_path / "flowers"


def pixels(dataset):
    return [np.asarray(dataset[i]["image"])[0, 0].tolist() for i in range(len(dataset))]


SYSTEM = (".ipynb_checkpoints", ".git", "@eaDir", "__MACOSX", "#recycle", "lost+found")


@pytest.mark.parametrize("name", SYSTEM)
@pytest.mark.parametrize("depth", ["split", "class", "below"])
def test_hidden_and_system_folders_are_skipped_at_every_depth(folder, name, depth):
    """Beside the classes they are no class, within one their files are no images of it."""
    want = {split: len(load_dataset(folder, split)) for split in ("train", "val", "test")}
    for split in ("train", "test"):
        below = {"split": "", "class": "n01", "below": "n02/year/month"}[depth]
        save(folder / split / below / name / "x.png", 5)
        save(folder / split / below / name / "n01" / "y.png", 6)
    for split, count in want.items():
        found = load_dataset(folder, split)
        assert found.classnames == ["n01", "n02", "n03"]
        assert len(found) == count
    if depth == "split":  # a link into a folder with a hidden one above is the user's own choice
        (folder.parent / ".cache").mkdir()
        (folder.parent / ".cache" / "flowers").symlink_to(folder)
        assert len(load_dataset(folder.parent / ".cache" / "flowers", "test")) == want["test"]


@pytest.mark.parametrize("file", ["._00.png", ".00.png", "sub/._00.jpg", ".DS_Store", "Thumbs.db"])
def test_hidden_files_and_files_of_other_kinds_are_no_images(folder, file):
    path = folder / "test" / "n01" / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"no image")
    data = load_dataset(folder, "test")
    assert len(data) == 9
    assert not data.damaged.any()
    assert len(pixels(data)) == 9
    assert not data.damaged.any()


def test_folder_round_trip(folder):
    test = load_dataset(folder, "test")
    assert test.classnames == ["n01", "n02", "n03"]
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert pixels(test) == [list(colour(i)) for i in range(60, 69)]
    assert (test.name, test.split, test.class_subset, test.templates) == (
        "flowers",
        "test",
        None,
        None,
    )


def test_hidden_files_and_folders_hold_no_images(folder):
    """What notebooks, archives and editors leave beside images."""
    for name in (".ipynb_checkpoints/00-checkpoint.png", "._00.png", "more/.cache/00.png"):
        save(folder / "test" / "n01" / name, 7)
    save(folder / "test" / "n01" / "more" / "03.png", 8)
    assert load_dataset(folder, "test").labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3


def test_validation_is_carved_from_train(folder):
    train = load_dataset(folder, "train", val_fraction=0.2, seed=1)
    val = load_dataset(folder, "val", val_fraction=0.2, seed=1)
    assert val.labels.bincount().tolist() == [4, 4, 4]
    assert train.labels.bincount().tolist() == [16, 16, 16]
    paths = set(train.images.paths), set(val.images.paths)
    assert not paths[0] & paths[1]
    assert len(paths[0] | paths[1]) == 60
    assert val.images.paths == load_dataset(folder, "val", val_fraction=0.2, seed=1).images.paths
    assert paths[1] != set(load_dataset(folder, "val", val_fraction=0.2, seed=2).images.paths)
    with pytest.raises(InputError, match="val_fraction must lie between 0 and 1, got 1"):
        load_dataset(folder, "val", val_fraction=1)


def test_a_validation_folder_is_used_as_it_is(folder):
    for name in ("n01", "n02", "n03"):
        save(folder / "val" / name / "x.png", 1)
    assert len(load_dataset(folder, "val")) == 3
    assert len(load_dataset(folder, "train")) == 60


def test_class_names_and_templates_from_files(folder):
    (folder / "classnames.txt").write_text("n03\tred rose\nn01\tlily\nn02\tsea  holly\n")
    (folder / "templates.txt").write_text("a photo of a {}.\n\na {}\n")
    data = load_dataset(folder, "test")
    assert data.classnames == ["lily", "sea  holly", "red rose"]
    assert data.templates == ["a photo of a {}.", "a {}"]
    (folder / "classnames.txt").write_text("lily\nholly\nrose\n")
    assert load_dataset(folder, "test").classnames == ["lily", "holly", "rose"]


def test_a_test_folder_with_some_classes_takes_the_training_labels(folder, tmp_path):
    save(tmp_path / "odd" / "test" / "n03" / "a.png", 1)
    save(tmp_path / "odd" / "test" / "n01" / "b.png", 2)
    odd = load_dataset(tmp_path / "odd", "test", classnames=["n01", "n02", "n03"])
    assert odd.labels.tolist() == [0, 2]
    assert odd.class_subset.tolist() == [0, 2]
    assert odd.classnames == ["n01", "n02", "n03"]
    renamed = load_dataset(tmp_path / "odd", "test", classnames=["lily", "rose"])
    assert (renamed.classnames, renamed.class_subset) == (["lily", "rose"], None)
    with pytest.raises(InputError, match=r"3 class names for 2 class folders .* lacks 'n03'"):
        load_dataset(tmp_path / "odd", "test", classnames=["n01", "n02", "n04"])


def test_folder_refusals(folder, tmp_path):
    with pytest.raises(InputError, match="image folder not found"):
        load_dataset(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match=r"no train split: .* found none of train, val, test"):
        load_dataset(folder / "train", "train")
    with pytest.raises(InputError, match="split: got 'dev', expected one of train, val, test"):
        load_dataset(folder, "dev")
    (folder / "train" / "n04").mkdir()
    with pytest.raises(InputError, match=r"class folder .*n04 holds no image"):
        load_dataset(folder, "train")
    save(folder / "test" / "n05" / "a.png", 0)
    with pytest.raises(InputError, match=r"has the class 'n05', which train/ has not"):
        load_dataset(folder, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lily\nrose\n", r"2 class names for 3 class folders \(n01, n02, n03\)"),
        ("n01\tlily\nn02\trose\n", "names no class for the folder 'n03'"),
        ("n01\tlily\nn02\trose\noak\n", "got 'oak', expected 'folder<TAB>name'"),
        ("rose\n\nlily\noak\n", r"classnames\.txt, line 2: blank, expected a class name"),
        ("n01\ta\nn02\tb\nn01\tc\nn03\td\n", "line 3: the folder 'n01' stands twice"),
        ("n01\ta\nn02\t\nn03\td\n", "line 2: got .*, expected 'folder<TAB>name'"),
    ],
)
def test_class_names_that_do_not_match(folder, text, message):
    (folder / "classnames.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        load_dataset(folder, "test")


def test_templates_that_do_not_serve(folder):
    (folder / "templates.txt").write_text("a photo\n")
    with pytest.raises(InputError, match=r"templates\.txt, line 1: got 'a photo', expected text"):
        load_dataset(folder, "test")
    with pytest.raises(InputError, match="text file not found"):
        load_dataset(folder, "test", templates=folder / "absent.txt")


def test_an_unreadable_image_names_its_file(folder):
    broken = folder / "test" / "n01" / "01.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"not a picture")
    data = load_dataset(folder, "test")
    with pytest.raises(InputError, match=r"cannot read the image .*n01.01\.png"):
        data[1]
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read the image .*n01.01\.png"):
        data[1]
    broken.unlink()
    with pytest.raises(InputError, match=r"image file not found: .*n01.01\.png"):
        data[1]


def write_table(tmp_path, name, header, rows):
    delimiter = "\t" if name.endswith("tsv") else ","
    for index in range(6):
        save(tmp_path / "images" / f"{index}.png", index)
    path = tmp_path / name
    lines = [header, *rows]
    path.write_text("\n".join(delimiter.join(map(str, line)) for line in lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["t-test.csv", "t-test.tsv"])
def test_table_round_trip(tmp_path, name):
    rows = [(f"images/{i}.png", f'"a cat {i}"', i % 2) for i in range(6)]
    path = write_table(tmp_path, name, ("path", "caption", "label"), rows)
    data = load_dataset(path, "test", classnames=["cat", "dog", "emu"], templates=["{}"])
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.captions[3] == "a cat 3"
    assert pixels(data) == [list(colour(i)) for i in range(6)]
    assert data.class_subset.tolist() == [0, 1]
    pairs = load_reference(path, n=99)
    assert [pairs[i]["text"] for i in range(len(pairs))] == data.captions
    four = load_reference(path, n=4, seed=1)
    assert len(four) == 4
    assert set(four.captions) < set(data.captions)
    assert four.captions == load_reference(path, n=4, seed=1).captions


def test_table_splits(tmp_path):
    rows = [(f"images/{i}.png", i % 2, split) for i, split in enumerate(["train", "train", "test"])]
    path = write_table(tmp_path, "data.csv", ("path", "label", "split"), rows)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    assert len(load_dataset(path, "test")) == 1
    assert load_dataset(path, "test").class_subset.tolist() == [0]
    with pytest.raises(InputError, match="too few images to carve"):
        load_dataset(path, "val")
    plain = write_table(
        tmp_path, "all.csv", ("path", "label"), [(f"images/{i}.png", i % 2) for i in range(6)]
    )
    train, val = (load_dataset(plain, s, val_fraction=0.34) for s in ("train", "val"))
    assert (len(train), len(val)) == (4, 2)
    assert not set(train.images.paths) & set(val.images.paths)
    with pytest.raises(InputError, match="has no test rows: all are train"):
        load_dataset(plain, "test")
    bad = write_table(tmp_path, "bad.csv", ("path", "label", "split"), [("images/0.png", 0, "dev")])
    with pytest.raises(InputError, match=r"line 2: got the split 'dev', expected one of"):
        load_dataset(bad, "train")


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (("image", "label"), ("images/0.png", 0), "no column 'path': .* found image, label"),
        (("path", "caption"), ("images/0.png", "x"), "no column 'label'"),
        (
            ("path", "label"),
            ("images/0.png", "cat"),
            "line 2: got the label 'cat', expected an int",
        ),
        (("path", "label"), ("images/0.png", 2), r"line 2: got the label 2, expected 0\.\.1"),
        (("path", "label"), ("images/0.png", -1), r"got the label -1, expected 0\.\.1"),
        (("path", "label"), ("images/0.png",), "line 2: 1 cells for 2 columns"),
        (("path", "label"), ("", 1), "line 2: the path is empty"),
    ],
)
def test_table_refusals(tmp_path, header, row, message):
    path = write_table(tmp_path, "t.csv", header, [row])
    with pytest.raises(InputError, match=message):
        load_dataset(path, "train", classnames=["cat", "dog"])


def test_more_table_refusals(tmp_path):
    with pytest.raises(InputError, match="table not found"):
        load_dataset(tmp_path / "absent.csv", "train")
    path = write_table(tmp_path, "t.csv", ("path", "label"), [])
    with pytest.raises(InputError, match="has a header but no rows"):
        load_dataset(path, "train", classnames=["a"])
    path = write_table(tmp_path, "t.csv", ("path", "label"), [("images/0.png", 0)])
    with pytest.raises(InputError, match="has labels but no class names"):
        load_dataset(path, "train")
    path.write_bytes(b"path,label\n\xff\xfe,0\n")
    with pytest.raises(InputError, match=r"t\.csv, line 2: byte 0xff is not UTF-8"):
        load_dataset(path, "train", classnames=["a"])
    with pytest.raises(InputError, match="no column 'caption'"):
        load_reference(write_table(tmp_path, "r.csv", ("path",), [("images/0.png",)]), n=1)
    table = write_table(tmp_path, "m.csv", ("path", "label"), [("gone.png", 0), ("x.png", 0)])
    with pytest.raises(InputError, match=r"image file not found: .*(gone|x)\.png"):
        load_dataset(table, "train", classnames=["a"])[0]


def test_unknown_names_list_what_there_is():
    with pytest.raises(InputError, match=r"unknown dataset 'digit': .*digits-fonts.*letters, inks"):
        load_dataset("digit", "test")
    with pytest.raises(InputError, match="unknown reference set 'cc3m': expected 'glyphs'"):
        load_reference("cc3m", n=3)
    with pytest.raises(InputError, match="n: got 0, expected at least 1"):
        load_reference("glyphs", n=0)


@pytest.mark.parametrize("name", ["a, 'b' \"c\" $d$ |e| {f} ü", "{}", "100% a\\b;c", "日本"])
def test_odd_letters_in_paths_are_read(tmp_path, monkeypatch, name):
    root = tmp_path / name
    for i in range(4):
        save(root / "test" / f"{name} {i % 2}" / f"{name} {i}.png", i)
    (root / "classnames.txt").write_text(f"{name} 0\t{name}\n{name} 1\tdog\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    data = load_dataset(f"./{name}", "test")
    assert (data.name, data.classnames) == (name, [name, "dog"])
    assert sorted(pixels(data)) == sorted(list(colour(i)) for i in range(4))
    quoted = name.replace('"', '""')
    rows = [f'"test/{quoted} {i % 2}/{quoted} {i}.png","{quoted}",{i % 2}' for i in range(4)]
    table = root / f"{name}-test.csv"
    table.write_text("\n".join(["path,caption,label", *rows]), encoding="utf-8")
    (root / "classnames.txt").write_text(f"{name}\ndog\n", encoding="utf-8")
    listed = load_dataset(table, "test")
    assert (listed.classnames, listed.captions) == ([name, "dog"], [name] * 4)
    assert pixels(listed) == [list(colour(i)) for i in range(4)]
    with pytest.raises(InputError, match="image folder not found"):
        load_dataset("./absent", "test")

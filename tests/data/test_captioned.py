"""Images with captions in place of classes: Karpathy's splits, tables, shards, and their counts."""

import json

import numpy as np
import pytest
import torch

from robustft import cache
from robustft.cli.app import run
from robustft.data import load_dataset
from robustft.data.captioned import CaptionedDataset
from robustft.data.registry import REGISTRY
from robustft.errors import InputError, InputWarning
from tests.layouts import colour, karpathy, picture, shards, write_json


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    list(REGISTRY)
    monkeypatch.setattr(REGISTRY, "_sets", dict(REGISTRY._sets))


def said(data):
    """Captions by image number, as the colour of the image tells it."""
    numbers = {colour(n): n for n in range(60)}
    seen = [numbers[tuple(np.asarray(data[i]["image"])[0, 0].tolist())] for i in range(len(data))]
    found = {n: [] for n in seen}
    for text, owner in zip(data.texts, data.owners.tolist(), strict=True):
        found[seen[owner]].append(text)
    return found


def numbered(count, each=2, **more):
    pixels = np.stack([np.full((4, 4, 3), colour(n), np.uint8) for n in range(count)])
    texts = [f"{n}, caption {i}" for i in range(each) for n in range(count)]
    more = {"name": "Numbers", "split": "train"} | more
    return CaptionedDataset(pixels, texts, list(range(count)) * each, **more)


def write_table(path, rows, header="path,caption"):
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, _ in rows:
        number = name.removesuffix(".png")
        if number.isdecimal():
            (path.parent / name).write_bytes(picture(int(number)))
    lines = [header, *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def test_pairs_tell_which_captions_are_of_one_image():
    pairs = numbered(3).pairs()
    assert pairs.captions == [f"{n}, caption {i}" for i in range(2) for n in range(3)]
    assert pairs.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for j in range(6):
        item = pairs[j]
        assert np.asarray(item["image"])[0, 0].tolist() == list(colour(item["label"]))
        assert pairs.captions[j].startswith(f"{item['label']},")


def test_a_part_keeps_the_captions_of_its_images():
    part = numbered(5).subset([3, 1], split="val")
    assert said(part) == {3: ["3, caption 0", "3, caption 1"], 1: ["1, caption 0", "1, caption 1"]}
    assert (part.split, part.listed, len(part.pairs())) == ("val", 4, 4)


def test_captions_and_images_must_fit():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    known = {"name": "x", "split": "test"}
    with pytest.raises(InputError, match=r"owners of 'x': got \[1\], expected \[2\]"):
        CaptionedDataset(pixels, ["a", "b"], [0], **known)
    with pytest.raises(InputError, match=r"got 0\.\.2, expected 0\.\.1"):
        CaptionedDataset(pixels, ["a", "b"], [0, 2], **known)
    with pytest.raises(InputError, match="got no caption of image 1"):
        CaptionedDataset(pixels, ["a", "b"], [0, 0], **known)


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_karpathys_splits_have_five_captions_an_image(tmp_path, name):
    karpathy(tmp_path, name, "coco" if name == "coco" else "flickr30k/flickr30k-images")
    for split, images in {"train": [0, 1, 2], "val": [3], "test": [4]}.items():
        with pytest.warns(InputWarning, match=rf"and {6 * len(images)} captions, expected"):
            data = load_dataset(f"partial:{name}@{tmp_path}", split)
        assert isinstance(data, CaptionedDataset)
        assert said(data) == {n: [f"image {n}, caption {i}." for i in range(5)] for n in images}
        assert (data.listed, data.split) == (6 * len(images), split)


def test_images_without_captions_are_left_out_and_counted(tmp_path):
    karpathy(tmp_path, "coco", "coco", captions=2)
    path = tmp_path / "coco" / "dataset_coco.json"
    listed = json.loads(path.read_text())
    listed["images"][0]["sentences"] = []
    listed["images"][1]["sentences"][1]["raw"] = " "
    write_json(path, listed)
    with pytest.warns(InputWarning) as warned:
        data = load_dataset(f"partial:coco@{tmp_path}", "train")
    assert said(data) == {
        1: ["image 1, caption 0."],
        2: ["image 2, caption 0.", "image 2, caption 1."],
    }
    lines = [str(w.message) for w in warned]
    assert any("2 blank captions, and 1 of 3 images" in line for line in lines)


def test_captions_of_images_that_are_not_there(tmp_path):
    karpathy(tmp_path, "coco", "coco")
    (tmp_path / "coco" / "val2014" / "1.jpg").unlink()
    with pytest.warns(InputWarning):
        data = load_dataset(f"partial:coco@{tmp_path}", "train")
    assert list(said(data)) == [0, 2]
    with pytest.raises(InputError, match="1 of 3 images are missing, the first is"):
        load_dataset(f"coco@{tmp_path}", "train")


def test_a_table_has_any_number_of_rows_an_image(tmp_path):
    rows = [
        ("1.png", "one"),
        ("2.png", "two"),
        ("1.png", "also one"),
        ("2.png", "two"),
        ("3.png", ""),
    ]
    write_table(tmp_path / "own-test.csv", rows)
    with pytest.warns(InputWarning, match="1 blank captions, and 1 of 3 images"):
        data = load_dataset(tmp_path / "own-test.csv", "test")
    assert said(data) == {1: ["one", "also one"], 2: ["two", "two"]}, "duplicates stay"
    with pytest.raises(InputError, match="has no train rows: all are test"):
        load_dataset(tmp_path / "own-test.csv", "train")
    with pytest.raises(InputError, match="has no column 'label' for the class names"):
        load_dataset(tmp_path / "own-test.csv", "test", classnames=["one"])


def test_a_table_is_carved_image_by_image_where_it_has_no_val(tmp_path):
    rows = [(f"{n % 20}.png", f"{n % 20} said {n}") for n in range(60)]
    write_table(tmp_path / "own.csv", rows, header="filepath,title")
    train, val = (
        load_dataset(tmp_path / "own.csv", split, seed=3, val_fraction=0.25)
        for split in ("train", "val")
    )
    assert (len(train), len(val), len(train.texts), len(val.texts)) == (15, 5, 45, 15)
    found = said(train) | said(val)
    assert sorted(found) == list(range(20)), "no image is in both"
    assert all(t.startswith(f"{n} ") for n, texts in found.items() for t in texts)
    again = load_dataset(tmp_path / "own.csv", "val", seed=3, val_fraction=0.25)
    assert said(again) == said(val)
    assert said(load_dataset(tmp_path / "own.csv", "val", seed=4, val_fraction=0.25)) != said(val)


OWN = """
my-captions:
  title: My captions
  reader: captions
  captions_each: 2
  train: {at: [mine/pairs.csv], images: 2, captions: 4}
  val: {at: [mine/pairs.csv], images: 1, captions: 3}
  test: {at: [mine/shards], images: 6, captions: 12}
"""


def test_sets_of_ones_own_are_read_from_tables_and_shards_and_checked(tmp_path, capsys):
    rows = [("0.png", "a", "train"), ("1.png", "b", "train"), ("0.png", "c", "train")]
    rows += [("0.png", "d", "train"), ("2.png", "e", "val")]
    write_table(tmp_path / "mine" / "pairs.csv", [row[:2] for row in rows])
    lines = ["path,caption,split", *(",".join(row) for row in rows)]
    (tmp_path / "mine" / "pairs.csv").write_text("\n".join(lines) + "\n")
    shards(tmp_path / "mine" / "shards", 2, captions="lines")
    (tmp_path / "own.yaml").write_text(OWN)
    where = ["--data-module", str(tmp_path / "own.yaml"), "--data-location", str(tmp_path)]
    assert run(["data", "check", "my-captions", *where]) == 0
    printed = capsys.readouterr().out
    assert "my-captions train: 2 images, 4 captions in " in printed
    assert "got 1 captions, expected 3" in printed
    assert "my-captions test: 6 images, 12 captions in " in printed
    assert run(["data", "ls", "--data-module", str(tmp_path / "own.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "My captions: train 2 images with 4 captions; val 1 images with 3 captions" in printed
    assert "coco" in printed
    assert "test 5,000 images with 25,010 captions" in printed
    train = load_dataset(f"my-captions@{tmp_path}", "train")
    assert said(train) == {0: ["a", "c"], 1: ["b"]}
    assert train.owners.dtype == torch.int64
    test = load_dataset(f"my-captions@{tmp_path}", "test")
    assert said(test) == {n: [f"picture {n}", f"the colour {n}"] for n in range(6)}


def test_few_shot_and_halves_need_classes(tmp_path):
    from robustft.data.few_shot import few_shot

    with pytest.raises(InputError, match="shots: got 4 for Numbers, expected images with classes"):
        few_shot(numbered(3), 4, seed=0)
    karpathy(tmp_path, "coco", "coco")
    with pytest.warns(InputWarning), pytest.raises(InputError, match="expected classes"):
        load_dataset(f"partial:base:coco@{tmp_path}", "test")

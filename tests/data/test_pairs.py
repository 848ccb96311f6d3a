"""Reference pairs as people have them: Karpathy's splits, tables, tar shards, labelled sets."""

import pickle

import numpy as np
import pytest

from robustft import cache
from robustft.data import load_dataset, load_reference
from robustft.data.registry import parse
from robustft.data.registry.load import load_part
from robustft.errors import InputError, InputWarning
from tests.layouts import colour, coop, karpathy, picture, shards


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def load(name, root, **how):
    with pytest.warns(InputWarning, match="got .* expected"):
        return load_reference(f"partial:{name}@{root}", **how)


def pixel(dataset, row):
    return tuple(np.asarray(dataset[row]["image"])[0, 0].tolist())


def check_numbers(pairs, word=1):
    for row in range(len(pairs)):
        assert pixel(pairs, row) == colour(int(pairs[row]["text"].split()[word].strip(",.")))


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("coco", "coco"),
        ("coco", "coco/images"),
        ("flickr30k", "flickr30k/flickr30k-images"),
        ("flickr30k", "flickr30k/Images"),
    ],
)
def test_karpathys_training_data_are_train_and_restval(tmp_path, name, images):
    karpathy(tmp_path, name, images)
    pairs = load(name, tmp_path)
    assert len(pairs) == 15, "three images, five captions of six each"
    assert pairs.captions[0] == "image 0, caption 0."
    check_numbers(pairs)
    with pytest.warns(InputWarning, match="got 1 images, expected"):
        test = load_part(parse(f"partial:{name}@{tmp_path}"), "test")
    assert [x.split()[1] for x in test.texts] == ["4,"] * 5


def test_pairs_are_no_training_images(tmp_path):
    shards(tmp_path / "cc3m", 1)
    with pytest.warns(InputWarning), pytest.raises(InputError, match="expected labelled images"):
        load_dataset(f"partial:cc3m@{tmp_path}", "train")


@pytest.mark.parametrize("captions", ["txt", "json"])
def test_shards_are_read_in_order_at_any_place(tmp_path, captions):
    shards(tmp_path / "cc3m", 4, captions=captions)
    pairs = load("cc3m", tmp_path)
    assert list(pairs.captions) == [f"picture {n}" for n in range(12)]
    assert pairs.captions[-2:] == ["picture 10", "picture 11"]
    check_numbers(pairs)
    again = pickle.loads(pickle.dumps(pairs))  # as a worker gets it
    assert pixel(again, 7) == colour(7)
    some = load("cc3m", tmp_path, n=5, seed=3)
    assert (len(some), some.available) == (5, 12)
    check_numbers(some)
    assert some.images.identity() != pairs.images.identity()


def test_headers_are_read_once_and_again_when_a_shard_changes(tmp_path, monkeypatch):
    shards(tmp_path / "cc3m", 2)
    first = list(load("cc3m", tmp_path).captions)
    read = []
    monkeypatch.setattr("robustft.data.shards._samples", lambda path: read.append(path) or iter(()))
    assert list(load("cc3m", tmp_path).captions) == first
    assert read == []
    monkeypatch.undo()
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    shards(tmp_path / "cc3m", 2, each=4)
    assert len(load("cc3m", tmp_path)) == 8


def test_one_damaged_shard_of_many_is_left_out_counted_and_named(tmp_path):
    shards(tmp_path / "cc3m", 150, each=2)
    broken = tmp_path / "cc3m" / "00003.tar"
    broken.write_bytes(broken.read_bytes()[:3800])  # within the second sample's image
    for _ in range(2):  # the second time from what was kept
        with pytest.warns(InputWarning) as said:
            pairs = load_reference(f"partial:cc3m@{tmp_path}")
        lines = [str(w.message) for w in said if "is damaged" in str(w.message)]
        assert len(lines) == 1
        assert f"{broken} is damaged after 1 pairs" in lines[0]
        assert lines[0].endswith("the rest of it is left out, as of 1 of 150 shards")
    assert [int(c.split()[1]) for c in pairs.captions] == [n for n in range(300) if n != 7]
    check_numbers(pairs)


@pytest.mark.parametrize("length", [0, 512, 700])
def test_a_shard_cut_at_any_place_is_damaged(tmp_path, length):
    shards(tmp_path / "cc3m", 3)
    broken = tmp_path / "cc3m" / "00001.tar"
    broken.write_bytes(broken.read_bytes()[:length])
    with pytest.raises(InputError, match=r"1 of 3 shards are damaged; up to 1% would be left out"):
        load_reference(f"partial:cc3m@{tmp_path}")


def test_a_shard_without_its_end_mark_is_damaged(tmp_path):
    shards(tmp_path / "cc3m", 1)
    path = tmp_path / "cc3m" / "00000.tar"
    path.write_bytes(path.read_bytes().rstrip(b"\0") + b"\0" * 5)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0" * (-size % 512))
    with pytest.raises(InputError, match="it ends without an end mark"):
        load_reference(f"partial:cc3m@{tmp_path}")


def test_a_damaged_image_in_a_shard_is_replaced_and_counted(tmp_path):
    shards(tmp_path / "cc3m", 1, each=120)
    path = tmp_path / "cc3m" / "00000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(picture(7), b"x" * len(picture(7))))
    pairs = load("cc3m", tmp_path)
    with pytest.warns(InputWarning, match=r"cannot read the image .*00000\.tar at byte"):
        assert pairs[7]["text"] == "picture 8"
    assert int(pairs.damaged.sum()) == 1


def test_samples_without_a_caption_are_counted(tmp_path):
    shards(tmp_path / "cc3m", 1, captions="none")
    with pytest.raises(InputError, match="got no image with a caption in 1 shards"):
        load_reference(f"partial:cc3m@{tmp_path}")
    shards(tmp_path / "cc3m", 2)
    shards(tmp_path / "cc3m", 1, captions="none")
    with pytest.warns(InputWarning, match="3 samples have no caption"):
        assert len(load_reference(f"partial:cc3m@{tmp_path}")) == 3


@pytest.mark.parametrize("header", ["path,caption", "filepath,title"])
def test_tables_of_paths_and_captions(tmp_path, header):
    (tmp_path / "cc3m").mkdir()
    (tmp_path / "cc3m" / "3.png").write_bytes(picture(3))
    (tmp_path / "cc3m" / "train.csv").write_text(f"{header}\n3.png,picture 3\n")
    pairs = load("cc3m", tmp_path)
    check_numbers(pairs)
    assert pairs.name == "CC3M"


def test_the_list_of_urls_is_explained(tmp_path):
    (tmp_path / "cc3m").mkdir()
    (tmp_path / "cc3m" / "Train_GCC-training.tsv").write_text("a cat\thttps://example.org/1.jpg\n")
    with pytest.raises(InputError, match="lists captions and URLs; fetch the images"):
        load_reference(f"cc3m@{tmp_path}")


def test_labelled_images_become_pairs_of_their_class_names(tmp_path):
    coop(tmp_path, "oxford-pets", classes=("cat", "shiba_inu"))
    pairs = load("oxford-pets", tmp_path)
    assert len(pairs) == 8
    assert set(pairs.captions) == {
        "a photo of a cat, a type of pet.",
        "a photo of a shiba inu, a type of pet.",
    }
    assert pixel(pairs, 7) == colour(1)

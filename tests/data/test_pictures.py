"""Image files as 8-bit RGB: depth, orientation, formats; and damaged ones among good ones."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from robustft.data.datasets import ImageDataset, PairDataset
from robustft.data.images import FileImages
from robustft.data.pictures import UnreadableImageError, read_picture
from robustft.errors import InputError, InputWarning
from robustft.train import batches

RAMP = np.linspace(0, 65535, 32 * 16).reshape(32, 16)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "I;16"), ("a.tif", "I;16"), ("b.tif", "I;16B"), ("a.pgm", "I")]
)
def test_sixteen_bits_of_grey_are_scaled(tmp_path, name, mode):
    path = tmp_path / name
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    Image.frombytes(mode, (16, 32), RAMP.astype(kind).tobytes()).save(path)
    got = np.asarray(read_picture(path)).astype(int)
    assert got.shape == (32, 16, 3)
    assert np.abs(got - np.round(RAMP.astype(int) / 257)[..., None]).max() <= 1


def test_twelve_bits_of_a_pgm_reach_white(tmp_path):
    path = tmp_path / "a.pgm"
    levels = np.linspace(0, 4095, 64).astype(">u2")
    path.write_bytes(b"P5 64 1 4095\n" + levels.tobytes())
    got = np.asarray(read_picture(path))[0, :, 0].astype(int)
    assert np.abs(got - levels.astype(float) * 255 / 4095).max() <= 1


def test_white_is_zero_is_turned_round(tmp_path):
    path = tmp_path / "a.tif"
    Image.frombytes("I;16", (16, 32), RAMP.astype("<u2").tobytes()).save(path, tiffinfo={262: 0})
    with Image.open(path) as opened:
        assert opened.tag_v2[262] == 0
        stored = np.asarray(opened).astype(int)
    got = np.asarray(read_picture(path))[..., 0].astype(int)
    assert np.abs(got - (255 - np.round(stored / 257))).max() <= 1


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.new(mode, (4, 4), 3).save(path)
    with pytest.raises(InputError, match=r"a\.tif: its pixels are of 32 bits"):
        read_picture(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(tmp_path, orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # white at the upper left
    stored = upright if orientation < 5 else upright.transpose(1, 0, 2)
    # EXIF 2.3, tag 274: the sides of the scene at which the first row and first column lie.
    if orientation in (3, 4, 6, 7):
        stored = stored[::-1]
    if orientation in (2, 3, 7, 8):
        stored = stored[:, ::-1]
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert np.array_equal(np.asarray(read_picture(path)), upright)


def test_damaged_exif_states_no_orientation(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (24, 16)).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_picture(path).size == (24, 16)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_other_formats_under_a_known_name_are_not_tried(tmp_path, name, monkeypatch):
    from PIL import EpsImagePlugin

    def forbidden(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", forbidden)
    path = tmp_path / name
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(UnreadableImageError, match=rf"{name}: no PNG, .* or PPM image"):
        read_picture(path)


COUNT, BAD = 200, 57


def colour(index):
    return (index, 255 - index, index // 2)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"photo {i}.png" for i in range(COUNT)]
    for index, path in enumerate(paths):
        Image.new("RGB", (4, 4), colour(index)).save(path)
    return paths


def damage(path, how):
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"half": whole[:40], "empty": b"", "html": b"<html>404</html>"}[how])


def labelled(files, transform=None, labels=None):
    labels = [i % 3 for i in range(len(files))] if labels is None else labels
    names = [f"text {i}" for i in range(len(files))]
    return ImageDataset(
        FileImages(files), labels, classnames=["a", "b", "c"], captions=names, name="photos",
        split="train", transform=transform,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["half", "empty", "html", "missing"])
def test_the_next_image_stands_in_for_a_damaged_one(files, how):
    damage(files[BAD], how)
    data = labelled(files)
    assert data.stand_ins().tolist() == list(range(COUNT))
    with pytest.warns(InputWarning, match=rf"photo {BAD}\.png.* left out, as 1 of 200 images"):
        item = data[BAD]
    assert (item["index"], item["label"]) == (BAD + 1, (BAD + 1) % 3)
    assert item["image"].getpixel((0, 0)) == colour(BAD + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data[BAD]["index"] == BAD + 1  # named once
    assert data.stand_ins()[BAD - 1 : BAD + 2].tolist() == [BAD - 1, BAD + 1, BAD + 1]
    assert data.damaged.nonzero().flatten().tolist() == [BAD]
    last = labelled(files)
    damage(files[-1], how)
    with pytest.warns(InputWarning):
        assert last[-1]["index"] == 0
    with pytest.raises(UnreadableImageError):
        last.images[BAD]


def test_more_than_a_hundredth_is_an_error_that_names_the_file(files):
    for index in (3, 4, 9):
        damage(files[index], "half")
    data = labelled(files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        assert data[3]["index"] == 5  # the next two are damaged as well
    with pytest.raises(UnreadableImageError, match=r"photo 9\.png.*3 of 200 .* up to 1%"):
        data[9]
    few = labelled(files[:8])
    with pytest.raises(UnreadableImageError, match=r"photo 3\.png.*1 of 8 images"):
        few[3]


def numbers(texts):
    return torch.tensor([[int(text.split()[1])] for text in texts])


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_the_same_with_workers_and_damage_is_counted(files, workers):
    damage(files[BAD], "half")
    turn = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    data = labelled(files, turn)
    texts = batches.Captions(
        data, None, lambda found: torch.tensor([[int(t[5:])] for t in found]), 0
    )
    source = batches.Samples(data, 0, texts)
    order = [(0, torch.tensor([1, BAD, 2])), (1, torch.tensor([BAD + 1, BAD, 0]))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        first, second = batches.stream(source, iter(order), workers)
    assert first["text"].flatten().tolist() == [1, BAD + 1, 2]
    assert second["text"].flatten().tolist() == [BAD + 1, BAD + 1, 0]
    assert first["label"].tolist() == [1, (BAD + 1) % 3, 2]
    expected = torch.tensor(colour(BAD + 1)) / 255
    assert torch.allclose(first["image"][1][:, 0, 0], expected)
    assert data.images.damaged.nonzero().flatten().tolist() == [BAD]
    with pytest.warns(InputWarning, match="photos: 1 of 200 images could not be read, so left out"):
        data.say_damaged()


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_counts_only_what_it_saw(files, workers):
    from robustft.evaluate import collect

    class Levels(torch.nn.Module):
        def features(self, images):
            return images[:, :, 0, 0]

        def logits(self, features):
            return features[:, :1].repeat(1, 3)

    damage(files[BAD], "half")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        out = collect(Levels(), labelled(files, transforms.ToTensor()), workers=workers)
    kept = [i for i in range(COUNT) if i != BAD]
    assert len(out) == COUNT - 1
    assert out.labels.tolist() == [i % 3 for i in kept]
    assert (out.features[:, 0] * 255).round().long().tolist() == kept


def test_validation_and_frozen_features_leave_it_out(files):
    from robustft.train.feed import frozen_features
    from robustft.train.validate import top1

    class Channels(torch.nn.Module):
        def encode_image(self, images):
            return images[:, :1, 0, 0]

    class Parity(torch.nn.Module):
        """Right about every image but the two that the test asks after."""

        @property
        def clip(self):
            return Channels()

        def forward(self, images):
            levels = (images[:, 0, 0, 0] * 255).round().long()
            return torch.nn.functional.one_hot(levels % 3, 3).float()

    damage(files[BAD], "half")
    data = labelled(files, transforms.ToTensor())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        assert top1(Parity(), data, batch_size=64, device="cpu") == 1.0
        # Nor is it counted where it is right about the image that stands in.
        labels = [(i + (i == BAD)) % 3 for i in range(COUNT)]
        other = labelled(files, transforms.ToTensor(), labels)
        assert top1(Parity(), other, batch_size=64, device="cpu") == 1.0
        fed = frozen_features(Parity(), data, None, device="cpu")
    levels = (fed.features.rows.flatten() * 255).round().long()
    assert torch.equal(fed.labels, levels % 3)


def test_preloading_drops_the_row(files):
    damage(files[BAD], "half")
    pairs = PairDataset(FileImages(files), [f"t{i}" for i in range(COUNT)], name="p")
    with pytest.warns(InputWarning):
        loaded = pairs.preloaded(transforms.ToTensor())
    assert len(loaded) == COUNT - 1
    assert loaded[BAD]["text"] == f"t{BAD + 1}"
    data = labelled(files).preloaded(transforms.ToTensor())
    assert (len(data), len(data.labels), data[BAD]["label"]) == (199, 199, (BAD + 1) % 3)


class Failing(FileImages):
    def __getitem__(self, index):
        raise InputError(f"row {index}: got nothing, expected something")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_is_the_error_itself(files, workers):
    data = labelled(files, transforms.ToTensor())
    data.images = Failing(files)
    loader = DataLoader(data, batch_size=4, num_workers=workers)
    with pytest.raises(InputError) as raised:
        next(iter(loader))
    assert str(raised.value) == "row 0: got nothing, expected something"
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)

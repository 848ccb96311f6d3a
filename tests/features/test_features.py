"""Stored features are the computed ones, and are computed anew when what they are of changes."""

import copy
import os
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
from robustft.errors import InputError, InputWarning
from robustft.features import FeatureStore, image_features, text_features, token_rows
from robustft.features import store as module
from robustft.models import copy_clip


def three(clip, pairs, store, **options):
    tokens = token_rows(clip, pairs, store)
    texts = text_features(clip, pairs, tokens, store)
    images, _ = image_features(clip.model, pairs, store, **options)
    return tokens, texts, images


def broken(*_):
    raise AssertionError("computed again")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_gives_the_bits_of_the_computation(clip, pairs, store, everything, workers):
    plain = three(clip, pairs, None)
    for found, expected in zip(three(clip, pairs, store, workers=workers), plain, strict=True):
        assert len(found) == 150
        assert found[0].dtype == expected.dtype
        assert torch.equal(everything(found), expected)
        for index in (0, 63, 64, 149):
            assert torch.equal(found[index], expected[index])
    tokens = plain[0]
    with torch.no_grad():
        last = clip.model.encode_text(tokens[128:].long())
    assert torch.equal(last, plain[1][128:])


def test_the_second_run_computes_nothing(clip, pairs, store, monkeypatch, everything):
    first = [everything(rows) for rows in three(clip, pairs, store)]
    other = copy_clip(clip)
    monkeypatch.setattr(type(other.model), "encode_image", broken)
    monkeypatch.setattr(type(other.model), "encode_text", broken)
    again = three(other, pairs, FeatureStore(store.root))
    assert all(torch.equal(everything(x), y) for x, y in zip(again, first, strict=True))
    assert {(e.kind, e.rows, e.total) for e in store.entries()} == {
        (kind, 150, 150) for kind in ("image", "text", "token")
    }


def changed_weight(clip, pairs):
    clip = copy_clip(clip)
    with torch.no_grad():
        clip.model.logit_scale += 1e-3
    return clip, pairs


def changed_transform(clip, pairs):
    steps = list(pairs.transform.transforms)
    steps[-1] = transforms.Normalize([0.5] * 3, [0.25] * 3)
    return clip, pairs.with_transform(transforms.Compose(steps))


def changed_pixel(clip, pairs):
    pairs = copy.copy(pairs)
    pairs.images = type(pairs.images)(pairs.images.pixels.copy())
    pairs.images.pixels[149, 3, 3] ^= 1
    return clip, pairs


def changed_caption(clip, pairs):
    pairs = copy.copy(pairs)
    pairs.captions = [*pairs.captions[:-1], pairs.captions[-1] + "!"]
    return clip, pairs


def changed_activation(clip, pairs):
    """The same tensors in another network."""
    clip = copy_clip(clip)
    for part in list(clip.model.modules()):
        for name, child in part.named_children():
            if isinstance(child, torch.nn.GELU):
                setattr(part, name, torch.nn.ReLU())
    return clip, pairs


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (changed_weight, ["image", "text"]),
        (changed_transform, ["image"]),
        (changed_pixel, ["image"]),
        (changed_caption, ["text", "token"]),
        (changed_activation, ["image", "text"]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_changes_features_changes_their_key(clip, pairs, store, everything, change, kinds):
    three(clip, pairs, store)
    before = {entry.folder for entry in store.entries()}
    clip, pairs = change(clip, pairs)
    found = three(clip, pairs, store)
    new = [entry.kind for entry in store.entries() if entry.folder not in before]
    assert sorted(new) == kinds
    plain = three(clip, pairs, None)
    assert all(torch.equal(everything(x), y) for x, y in zip(found, plain, strict=True))


def test_the_precision_is_part_of_the_key(clip, pairs, store, everything):
    full, _ = image_features(clip.model, pairs, store)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = image_features(clip.model, pairs, store)
    assert not torch.equal(everything(full), everything(half))


class Brighter:
    """A transform of the caller's own, which does not say how much."""

    deterministic = True

    def __init__(self, more):
        self.more, self.table = more, object()

    def __call__(self, picture):
        return transforms.functional.pil_to_tensor(picture.resize((24, 24))) / 255 + self.more


def test_a_transform_that_cannot_be_told_from_another_is_never_stored(clip, pairs, store):
    for more in (0.0, 0.5):
        data = pairs.with_transform(Brighter(more))
        found, _ = image_features(clip.model, data, store)
        assert torch.equal(found, image_features(clip.model, data)[0])
    assert store.entries() == []


@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_a_damaged_shard_is_computed_anew(clip, pairs, store, everything, how):
    image_features(clip.model, pairs, store)
    (entry,) = store.entries()
    path = entry.folder / "00001.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes({"flipped": bytes(raw), "cut": bytes(raw[:-9]), "empty": b""}[how])
    with pytest.warns(InputWarning, match=r"00001.safetensors is damaged: its features are"):
        found, _ = image_features(clip.model, pairs, FeatureStore(store.root))
    assert torch.equal(everything(found), image_features(clip.model, pairs)[0])


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i:03d}.png" for i in range(120)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(path)
    return paths


def test_a_changed_file_is_seen_and_a_damaged_one_is_known_from_the_store(clip, files, store):
    files[65].write_bytes(files[65].read_bytes()[:60])

    def data():
        labels = [i % 5 for i in range(120)]
        return ImageDataset(FileImages(files), labels, classnames=list("abcde"), name="files",
            split="train", transform=clip.preprocess_val)  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        first, second = data(), data()
        found, items = image_features(clip.model, first, store)
        again, same = image_features(clip.model, second, FeatureStore(store.root))
    assert items.tolist() == same.tolist() == [i + (i == 65) for i in range(120)]
    assert torch.equal(found[65], found[66])
    assert second.damaged.nonzero().tolist() == [[65]]
    Image.new("RGB", (24, 24), "red").save(files[7])
    os.utime(files[7], (1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        newer, _ = image_features(clip.model, data(), store)
    assert not torch.equal(newer[7], again[7])
    assert torch.equal(newer[8], again[8])


def test_rows_reach_loading_processes_by_their_names_alone(clip, pairs, store):
    found, _ = image_features(clip.model, pairs, store)
    raw = pickle.dumps(found)
    assert len(raw) < 2000
    read = DataLoader(pickle.loads(raw), batch_size=50, num_workers=1)
    assert torch.equal(torch.cat(list(read)), found[torch.arange(150)])


def test_a_full_disk_is_an_error_that_says_what_to_do(clip, pairs, store, monkeypatch):
    usage = module.shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"feature store: 0\.0 GB are needed, .* or off to keep"):
        three(clip, pairs, store)


def test_clear_removes_what_was_not_used_for_so_long(clip, pairs, store):
    rows = three(clip, pairs, store)
    size = sum(entry.size for entry in store.entries())
    assert store.clear(days=1) == 0
    old = next(entry.folder for entry in store.entries() if entry.kind == "text")
    os.utime(old / "entry.json", (1, 1))
    assert 0 < store.clear(days=1) < size
    assert {entry.kind for entry in store.entries()} == {"image", "token"}
    assert store.clear() > 0
    assert list(store.root.iterdir()) == []
    assert rows[1][0].isfinite().all()  # an open one stays


def test_pairs_without_captions_are_an_error(clip):
    data = PairDataset(np.zeros((0, 24, 24, 3), np.uint8), [], name="none")
    with pytest.raises(InputError, match="captions: got none"):
        token_rows(clip, data)

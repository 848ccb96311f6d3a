"""Datasets: items, seeded transforms, preloading, splits, caption tables."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision import transforms

from robustft.data import load_dataset
from robustft.data.captions import CaptionTable
from robustft.data.datasets import ImageDataset, PairDataset, stratified_split
from robustft.data.transforms import is_deterministic, seeded
from robustft.errors import InputError

PIXELS = np.random.default_rng(3).integers(0, 256, (7, 24, 24, 3), dtype=np.uint8)
PLAIN = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)])
RANDOM = transforms.Compose([transforms.RandomResizedCrop(24), transforms.ToTensor()])


class PythonFlip:
    """A transform that draws from Python's and NumPy's global generators."""

    def __call__(self, image):
        draw = random.random() + np.random.rand()  # noqa: NPY002
        return transforms.functional.to_tensor(image) * draw


def dataset(transform=None, **options):
    return ImageDataset(
        PIXELS,
        [0, 1, 2, 0, 1, 2, 0],
        classnames=["a", "b", "c"],
        name="seven",
        split="test",
        transform=transform,
        **options,
    )


def test_items_hold_the_pixels_label_and_index():
    item = dataset(transforms.ToTensor())[4]
    assert (item["label"], item["index"]) == (1, 4)
    expected = torch.from_numpy(PIXELS[4]).permute(2, 0, 1).float() / 255
    assert torch.equal(item["image"], expected)
    assert np.array_equal(np.asarray(dataset()[4]["image"]), PIXELS[4])
    assert dataset()[-1]["index"] == 6
    with pytest.raises(IndexError):
        dataset()[7]


@pytest.mark.parametrize("transform", [RANDOM, PythonFlip()], ids=["torch", "python"])
def test_a_random_transform_is_a_function_of_the_seed(transform):
    data = dataset(transform)
    torch.manual_seed(0)
    first = data.sample(2, (5, 1, 2))["image"]
    before = torch.get_rng_state(), random.getstate()
    torch.rand(3)
    random.random()
    again = data.sample(2, (5, 1, 2))["image"]
    other = data.sample(2, (5, 2, 2))["image"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    data.sample(2, (9,))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_generators_are_put_back_after_an_exception():
    state = torch.get_rng_state()

    def fail():
        with seeded((1, 2)):
            torch.rand(2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.get_rng_state(), state)


def test_which_transforms_are_deterministic():
    open_clip_transform = pytest.importorskip("open_clip.transform")
    cfg = open_clip_transform.PreprocessCfg(size=24)
    assert is_deterministic(None)
    assert is_deterministic(PLAIN)
    assert is_deterministic(open_clip_transform.image_transform_v2(cfg, is_train=False))
    assert not is_deterministic(open_clip_transform.image_transform_v2(cfg, is_train=True))
    assert not is_deterministic(RANDOM)
    assert not is_deterministic(PythonFlip())
    # RandomApply also has .transforms, and skips them at random.
    assert not is_deterministic(transforms.RandomApply([transforms.ToTensor()]))


def test_preloading_gives_the_same_tensors():
    data = dataset(PLAIN)
    loaded = data.preloaded()
    for index in range(len(data)):
        assert torch.equal(loaded[index]["image"], data[index]["image"])
    assert loaded.sample(3, (1,))["label"] == 0
    with pytest.raises(InputError, match="without random parts"):
        dataset(RANDOM).preloaded()
    with pytest.raises(InputError, match="without random parts"):
        dataset().preloaded()
    with pytest.raises(InputError, match="already transformed"):
        loaded.with_transform(RANDOM)


def test_with_transform_leaves_the_original_alone():
    data = dataset()
    assert isinstance(data.with_transform(PLAIN)[0]["image"], torch.Tensor)
    assert data.transform is None


def test_subset_keeps_rows_together():
    data = dataset(captions=list("stuvwxy"))
    part = data.subset([6, 1], split="val")
    assert part.labels.tolist() == [0, 1]
    assert part.captions == ["y", "t"]
    assert part.split == "val"
    assert data.split == "test"
    assert np.array_equal(np.asarray(part[1]["image"]), PIXELS[1])
    loaded = data.with_transform(PLAIN).preloaded().subset([6, 1], split="val")
    assert torch.equal(loaded[0]["image"], PLAIN(data[6]["image"]))


def test_pairs():
    pairs = PairDataset(PIXELS, list("abcdefg"), name="pairs", transform=PLAIN)
    assert pairs[3]["text"] == "d"
    assert pairs.preloaded()[3]["text"] == "d"
    assert set(pairs.sample(3, (0,))) == {"image", "text", "index"}
    with pytest.raises(InputError, match=r"captions of 'pairs': got 2 texts, expected 7"):
        PairDataset(PIXELS, ["a", "b"], name="pairs")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels of 'x': got \[2\], expected \[7\]"),
        ([0, 1, 2, 3, 0, 0, 0], r"got 0\.\.3, expected 0\.\.2"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        ImageDataset(PIXELS, labels, classnames=["a", "b", "c"], name="x", split="test")


def test_wrong_pixels_are_refused():
    with pytest.raises(InputError, match=r"got float64 .*, expected uint8 \[N, H, W, 3\]"):
        PairDataset(np.zeros((1, 2, 2, 3)), ["a"], name="x")


def test_stratified_split_is_disjoint_covering_and_in_proportion():
    labels = torch.tensor([0] * 101 + [1] * 37 + [2] * 10 + [3] * 1)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    parts = stratified_split(labels, (0.6, 0.2, 0.2), (4,))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    counts = [np.bincount(labels[part].numpy(), minlength=4) for part in parts]
    assert np.abs(counts[1][:3] / [101, 37, 10] - 0.2).max() < 0.05
    assert np.abs(counts[2][:3] / [101, 37, 10] - 0.2).max() < 0.05
    assert [count[3] for count in counts] == [1, 0, 0]
    # A small class has a row in each part, though its share of a part rounds to none.
    kept, carved = stratified_split(torch.tensor([0] * 30 + [1] * 3), (0.9, 0.1), (4,))
    assert (carved >= 30).sum() == 1
    assert (kept >= 30).sum() == 2
    again = stratified_split(labels, (0.6, 0.2, 0.2), (4,))
    other = stratified_split(labels, (0.6, 0.2, 0.2), (5,))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[1], other[1])


def letters_tokenizer(texts):
    width = max(map(len, texts))
    return torch.tensor([[ord(c) for c in text.ljust(width)] for text in texts])


def test_caption_table_draws_uniformly_and_purely():
    table = CaptionTable(
        ["cat", "dog"], ["a {}.", "the {}.", lambda name: f"{name}!"], letters_tokenizer
    )
    assert table.tokens.shape == (2, 3, 8)
    text = "".join(map(chr, table.draw(1, (0, 0, 0)))).strip()
    assert text in {"a dog.", "the dog.", "dog!"}
    assert torch.equal(table.draw(1, (3, 1, 7)), table.draw(1, (3, 1, 7)))
    picks = Counter(table.pick((0, epoch, index)) for epoch in range(4) for index in range(750))
    # Chi-square with 2 degrees of freedom: 13.8 is passed once in a thousand seeds.
    assert sum((picks[t] - 1000) ** 2 / 1000 for t in range(3)) < 13.8
    with pytest.raises(InputError, match=r"label must lie in 0\.\.1, got 2"):
        table.draw(2, (0,))


@pytest.mark.parametrize("template", ["a photo", "a {name}", "a {} and {}{", "{{}}"])
def test_templates_without_a_place_are_refused(template):
    with pytest.raises(InputError, match="where the class name goes"):
        CaptionTable(["cat"], [template], letters_tokenizer)


def test_empty_tables_are_refused():
    with pytest.raises(InputError, match="at least one class name and one template, got 0 and 1"):
        CaptionTable([], ["{}"], letters_tokenizer)


def test_functions_as_templates_have_an_identity_that_lasts():
    from robustft.data.templates import describe_templates

    def article(name):
        return f"an {name}" if name[0] in "aeiou" else f"a {name}"

    here = describe_templates([article, "the {}"], ["ant", "bee"])
    assert here == ["an ant\na bee", "the {}"]
    assert here == describe_templates([lambda c: article(c), "the {}"], ["ant", "bee"])
    assert here != describe_templates([lambda c: f"a {c}", "the {}"], ["ant", "bee"])
    assert load_dataset("digits", "test", templates=[article, "the {}"]).templates[0] is article

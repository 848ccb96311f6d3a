"""Recalls of image–text retrieval against a sorted matrix in NumPy, and a pass of a model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robustft.data.captioned import CaptionedDataset
from robustft.data.images import FileImages
from robustft.errors import InputError, InputWarning
from robustft.evaluate import retrieval
from robustft.evaluate.collect import KeptImages
from robustft.evaluate.retrieval import MEASURES, Recalls, recalls, retrieve, select_by_recall
from robustft.models import load_clip


def sorted_recalls(image, text, owners):
    """The definition, from the whole matrix of cosines in float64; equal ones in their order."""
    image, text, owners = image.double().numpy(), text.double().numpy(), owners.numpy()
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    cosines = image @ text.T
    found = {}
    for k in (1, 5, 10):
        first = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        of_image = [np.isin(owners[first[i]], i).any() for i in range(len(image))]
        first = np.argsort(-cosines.T, axis=1, kind="stable")[:, :k]
        of_text = [owners[j] in first[j] for j in range(len(text))]
        found[f"image-to-text-R@{k}"] = np.mean(of_image)
        found[f"text-to-image-R@{k}"] = np.mean(of_text)
    return found


def features(images, owners, seed=0, noise=2.0, width=24):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(images, width, generator=generator)
    text = image[owners] + noise * torch.randn(len(owners), width, generator=generator)
    return image, text


def mixed(*counts):
    """Owners of captions in no order; image i has counts[i] of them."""
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return owners[torch.randperm(len(owners), generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize(
    "counts", [[5] * 127, [2] * 61, [1, 7, 2] * 13, [1] * 4], ids=["5", "2", "some", "few images"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_recalls_are_those_of_the_sorted_matrix(counts, dtype):
    owners = mixed(*counts)
    image, text = (x.to(dtype) for x in features(len(counts), owners))
    found = recalls(image, text, owners)
    assert tuple(found) == MEASURES
    assert found == pytest.approx(sorted_recalls(image, text, owners))
    assert found["text-to-image-R@1"] < 1 or len(counts) < 5, "or nothing is shown"


def test_recalls_of_a_hand_count():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # The second caption of image 0 lies at image 1, which is all that keeps image 1 from its own.
    text = torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.3, 1.0], [-1.0, 0.2]])
    found = recalls(image, text, torch.tensor([0, 0, 1, 2]))
    assert found["image-to-text-R@1"] == pytest.approx(2 / 3)
    assert found["text-to-image-R@1"] == pytest.approx(3 / 4)
    assert found["image-to-text-R@5"] == found["text-to-image-R@5"] == 1, "there are no five"


def test_of_equal_candidates_the_first_counts_as_nearer():
    owners = torch.arange(50).repeat_interleave(2)
    image, text = torch.ones(50, 8), torch.ones(100, 8)
    found = recalls(image, text, owners)  # a model that has collapsed guesses
    assert [found[f"text-to-image-R@{k}"] for k in (1, 5, 10)] == [0.02, 0.1, 0.2]
    assert [found[f"image-to-text-R@{k}"] for k in (1, 5, 10)] == [0.02, 0.06, 0.1]


def test_duplicates_are_counted_as_they_are_listed():
    owners = torch.tensor([0, 0, 1, 1, 2])
    image, text = features(3, owners, noise=0.01)
    text[2] = text[0]  # image 1 has a caption of image 0, word by word
    found = recalls(image, text, owners)
    assert found["text-to-image-R@1"] == pytest.approx(4 / 5)
    assert found["image-to-text-R@1"] == 1


def test_rows_that_are_not_finite_find_nothing_and_are_not_found():
    owners = torch.arange(20).repeat_interleave(3)
    image, text = features(20, owners, noise=0.01)
    assert set(recalls(image, text, owners).values()) == {1.0}
    image[3] = torch.nan
    text[6:9] = torch.inf
    found = recalls(image, text, owners)
    assert found["image-to-text-R@10"] == pytest.approx(18 / 20)
    assert found["text-to-image-R@10"] == pytest.approx(54 / 60)
    assert set(recalls(image * torch.nan, text, owners).values()) == {0.0}


def test_what_does_not_fit_is_refused():
    owners = torch.tensor([0, 0, 1])
    image, text = features(2, owners)
    with pytest.raises(InputError, match="text: got 3 columns, expected 24"):
        recalls(image, text[:, :3], owners)
    with pytest.raises(InputError, match=r"owners: got shape \(2,\)"):
        recalls(image, text, owners[:2])
    with pytest.raises(InputError, match="owners: got values from 0 to 2"):
        recalls(image, text, owners + torch.tensor([0, 0, 1]))
    with pytest.raises(InputError, match="owners: got 1 of 2 images without a caption"):
        recalls(image, text, owners * 0)


def test_memory_is_far_from_that_of_the_matrix():
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        pytest.skip("peak memory is read from /proc")

    def status(name):
        text = Path("/proc/self/status").read_text()
        return int(text.split(f"{name}:")[1].split()[0]) * 1024

    owners = torch.arange(4000).repeat_interleave(5)
    image, text = features(4000, owners, width=32)
    recalls(image[:64], text[:320], owners[:320])  # what is loaded at first use
    clear.write_text("5")
    before = status("VmRSS")
    recalls(image, text, owners)
    matrix = 4 * len(image) * len(text)
    assert status("VmHWM") - before < matrix / 4


def test_the_highest_mean_recall_is_chosen_and_of_equals_the_largest_alpha():
    def at(*values, split="val"):
        return Recalls(dict(zip(MEASURES, values, strict=True)), 40, 200, split)

    low, high = at(*[0.2] * 6), at(0.1, 0.3, 0.5, 0.2, 0.4, 0.6)
    choice = select_by_recall({0.0: low, 0.5: high, 0.8: high, 1.0: low})
    assert (choice.alpha, choice.tied, choice.n) == (0.8, (0.5, 0.8), 40)
    assert choice.mean_recall == pytest.approx(0.35)
    assert str(choice) == (
        "α=0.8: mean recall 35.0 % on 40 validation images, tied with 0.5: the one nearest to the "
        "fine-tuned model"
    )
    with pytest.raises(InputError, match="expected a validation split"):
        select_by_recall({0.0: at(*[0.2] * 6, split="test")})


@pytest.fixture(scope="module")
def clip():
    return load_clip("robustft-tiny", "glyphs")


@pytest.fixture(scope="module")
def glyphs():
    """Forty glyphs, of which every third has a second caption."""
    from robustft.data.world import reference_pairs

    pairs = reference_pairs(40, seed=3)
    texts, owners = list(pairs.captions), list(range(40))
    for row in range(0, 40, 3):
        texts.append(f"an image of {pairs.captions[row]}")
        owners.append(row)
    return CaptionedDataset(pairs.images, texts, owners, name="Glyphs", split="test")


def test_a_model_is_measured_as_its_features_say(clip, glyphs):
    data = glyphs.with_transform(clip.preprocess_val)
    found = retrieve(clip.model, clip.tokenizer, data, batch_size=7)
    with torch.no_grad():
        image = clip.model.encode_image(torch.stack([data[i]["image"] for i in range(40)]))
        text = clip.model.encode_text(clip.tokenizer(data.texts))
    assert dict(found.values) == pytest.approx(sorted_recalls(image, text, data.owners))
    assert (found.images, found.captions, found.split) == (40, 54, "test")
    assert found.mean == pytest.approx(np.mean(list(found.values.values())))
    assert found.mean > 0.5, "the model knows glyphs"


def test_images_without_a_transform_are_refused(clip, glyphs):
    with pytest.raises(InputError, match="got Glyphs without a transform, expected images"):
        retrieve(clip.model, clip.tokenizer, glyphs)


def test_images_are_decoded_once_for_several_models(clip, glyphs, monkeypatch):
    data = glyphs.with_transform(clip.preprocess_val)
    kept, read = KeptImages(2**30), []
    plain = CaptionedDataset.__getitem__
    monkeypatch.setattr(
        CaptionedDataset, "__getitem__", lambda self, i: read.append(i) or plain(self, i)
    )
    first, second = (
        retrieve(clip.model, clip.tokenizer, data, batch_size=16, kept=kept) for _ in range(2)
    )
    assert first == second
    assert len(read) == 40
    assert retrieve(clip.model, clip.tokenizer, data.preloaded()) == first


def test_a_damaged_image_is_left_out_with_its_captions(clip, glyphs, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(150)]
    for i, path in enumerate(paths):
        glyphs.images[i % 40].save(path)
    owners = [i for i in range(150) for _ in range(2)]
    texts = [glyphs.texts[i % 40] for i in owners]
    paths[5].write_bytes(b"no image")
    data = CaptionedDataset(
        FileImages(paths), texts, owners, name="Files", split="val", transform=clip.preprocess_val
    )
    with pytest.warns(InputWarning, match="1 of 150 images could not be read"):
        found = retrieve(clip.model, clip.tokenizer, data)
    assert (found.images, found.captions) == (149, 298)
    whole = data.subset([i for i in range(150) if i != 5], split="val")
    assert retrieve(clip.model, clip.tokenizer, whole) == found


def test_queries_are_searched_in_blocks(monkeypatch):
    owners = mixed(*[5] * 30)
    image, text = features(30, owners)
    whole = recalls(image, text, owners)
    monkeypatch.setattr(retrieval, "_QUERIES", 7)
    assert recalls(image, text, owners) == whole

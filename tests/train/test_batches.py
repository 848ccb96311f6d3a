import itertools

import pytest
import torch

from robustft.train import feed
from robustft.train.batches import Captions, Samples, stream
from robustft.train.order import Order


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_equals_memory(world, workers):
    """A preloaded set and one that is transformed item by item give the same batches."""
    lazy = world.raw.with_transform(world.clip.preprocess_val)
    streams = []
    for data, count in ((world.train, 0), (lazy, workers)):
        captions = Captions(data, world.templates, world.clip.tokenizer, 0)
        order = Order(n=45, batch_size=7, seed=0)
        flat = ((e, b) for e, batches in order.steps(3, 11) for b in batches)
        streams.append(list(stream(Samples(data, 0, captions), flat, count)))
    assert len(streams[0]) == len(streams[1]) == 8
    assert all(equal(a, b) for a, b in zip(*streams, strict=True))


def test_captions_name_the_class_and_vary_by_epoch(world):
    captions = Captions(world.train, world.templates, world.clip.tokenizer, 0)
    drawn = [set(), set(), set()]
    for epoch, index in itertools.product(range(8), range(3)):
        name = world.train.classnames[int(world.train.labels[index])]
        possible = world.clip.tokenizer([t.format(name) for t in world.templates]).tolist()
        tokens = captions.draw(epoch, index).tolist()
        assert tokens in possible
        drawn[index].add(tuple(tokens))
    assert all(len(seen) > 1 for seen in drawn)


def test_own_captions_are_used_where_there_are_any(world):
    data = world.train.subset(range(5), split="train")
    data.captions = [f"picture number {i}" for i in range(5)]
    captions = Captions(data, world.templates, world.clip.tokenizer, 0)
    expected = world.clip.tokenizer(data.captions)
    assert torch.equal(captions.draw(3, 4), expected[4])


def test_references_carry_the_frozen_features_of_their_own_pair(world):
    pairs = feed.references(world.clip, world.reference, seed=0, device="cpu")
    images = torch.tensor([31, 2, 17])
    batch = pairs.gather(0, images)
    model = world.clip.model.eval()
    texts = [world.reference.captions[i] for i in images]
    with torch.no_grad():
        expected = model.encode_image(batch["ref_image"])
        torch.testing.assert_close(batch["ref_image_pretrained"], expected, rtol=1e-4, atol=1e-5)
        expected = model.encode_text(world.clip.tokenizer(texts))
        torch.testing.assert_close(batch["ref_text_pretrained"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(batch["ref_image"], world.reference.images.tensors[images])


def test_augmented_references_have_no_precomputed_image_features(world):
    from torchvision import transforms

    from robustft.data import load_reference

    augment = transforms.Compose([transforms.RandomCrop(24, padding=3), transforms.ToTensor()])
    data = load_reference("glyphs", n=9).with_transform(augment)
    pairs = feed.references(world.clip, data, seed=0, device="cpu")
    first, again, later = pairs[(0, 5)], pairs[(0, 5)], pairs[(1, 5)]
    assert set(first) == {"ref_image", "ref_text", "ref_text_pretrained"}
    assert equal(first, again)
    assert not torch.equal(first["ref_image"], later["ref_image"])


def test_frozen_features_leave_augmentation_out(world):
    from torchvision import transforms

    from robustft.models import Classifier

    augment = transforms.Compose([transforms.RandomCrop(24, padding=3), transforms.ToTensor()])
    data = world.raw.with_transform(augment)
    classifier = Classifier.zero_shot(world.clip, data.classnames, world.templates)
    features = feed.frozen_features(classifier, data, world.clip.preprocess_val, device="cpu")
    with torch.no_grad():
        expected = classifier.eval().features(world.train.images.tensors)
    everything = torch.arange(len(features))
    torch.testing.assert_close(features.features[everything], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(features.labels, data.labels)

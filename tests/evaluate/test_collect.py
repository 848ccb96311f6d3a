"""One pass over a data set, with a small stand-in for the classifier."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustft.errors import InputError
from robustft.evaluate import Outputs, collect
from robustft.evaluate.collect import KeptImages, collect_each


class Stand(nn.Module):
    """The parts of a Classifier that `collect` uses, with a layer that differs in train mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Dropout(0.5))
        self.head = nn.Linear(5, 3)

    def features(self, images):
        return nn.functional.normalize(self.body(images).float(), dim=1)

    def logits(self, features):
        return self.head(features)


class Images:
    name, split, class_subset = "Toy", "val", torch.tensor([0, 2])

    def __init__(self, n=11, image=None, shift=0):
        self.images = torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(1))
        self.n, self.image, self.shift = n, image, shift

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        image = self.images[i] if self.image is None else self.image
        # Captions of different lengths would not collate.
        return {"image": image, "label": 2 * (i % 2), "index": i + self.shift, "text": "x" * i}


def test_collect_keeps_order_and_restores_the_mode():
    model, dataset = Stand().train(), Images()
    model.body[1].eval()
    got = collect(model, dataset, batch_size=4)
    assert [m.training for m in model.body] == [True, False, True]
    assert model.training
    model.eval()
    with torch.no_grad():
        features = model.features(dataset.images)
        torch.testing.assert_close(got.features, features)
        torch.testing.assert_close(got.logits, model.logits(features))
    assert got.labels.tolist() == [0, 2] * 5 + [0]
    assert (got.split, got.dataset, len(got)) == ("val", "Toy", 11)
    assert got.class_subset.tolist() == [0, 2]
    assert not got.logits.requires_grad


def test_bf16_is_close_and_comes_back_as_float32():
    model, dataset = Stand(), Images()
    exact, low = collect(model, dataset), collect(model, dataset, precision="amp_bf16")
    assert low.logits.dtype == low.features.dtype == torch.float32
    assert not torch.equal(low.features, exact.features)
    torch.testing.assert_close(low.features, exact.features, atol=2e-2, rtol=0)


def test_collect_refuses():
    with pytest.raises(InputError, match="precision"):
        collect(Stand(), Images(), precision="fp8")
    with pytest.raises(InputError, match="without a sample"):
        collect(Stand(), Images(0))
    with pytest.raises(InputError, match=r"SimpleNamespace as image 0 of Toy.*with_transform"):
        collect(Stand(), Images(image=SimpleNamespace()))
    with pytest.raises(InputError, match=r"got 11 images of Toy \(val\), none of which"):
        collect(Stand(), Images(shift=1))  # another image stands in for each
    with pytest.raises(InputError, match="Outputs of Toy"):
        Outputs(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2), "val", "Toy")


def test_images_are_decoded_once_for_several_models():
    class Counting(Images):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    dataset, model = Counting(), Stand()
    kept = KeptImages(2**20)
    first, second = (collect(model, dataset, batch_size=4, kept=kept) for _ in range(2))
    assert Counting.reads == len(dataset)
    assert torch.equal(first.logits, second.logits)
    small = KeptImages(10)  # what does not fit is decoded anew
    collect(model, dataset, kept=small)
    collect(model, dataset, kept=small)
    assert Counting.reads == 3 * len(dataset)


def test_several_models_share_one_pass_whatever_fits_into_memory():
    class Counting(Images):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    dataset, models = Counting(), [Stand().train(), Stand()]
    models[1].head.weight.data.neg_()
    found = collect_each(models, dataset, batch_size=4, kept=KeptImages(10))
    assert Counting.reads == len(dataset)
    assert models[0].training
    for model, outputs in zip(models, found, strict=True):
        alone = collect(model, Images(), batch_size=4)
        assert torch.equal(outputs.logits, alone.logits)
        assert torch.equal(outputs.features, alone.features)
        assert torch.equal(outputs.labels, alone.labels)
    assert not torch.equal(found[0].logits, found[1].logits)

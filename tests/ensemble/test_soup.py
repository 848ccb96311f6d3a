"""Model soups: means of weights, and the greedy recipe on validation data."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from robustft.ensemble import greedy_soup, uniform_soup
from robustft.errors import InputError

NAMES = ["cat", "dog", "axolotl"]


class Tower(torch.nn.Module):
    """As much of a CLIP model as a soup needs."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Linear(6, 4)
        self.register_buffer("steps", torch.tensor(3))

    def encode_image(self, images):
        return self.visual(images)


def classifiers(count, seed=0):
    from robustft.models import Classifier

    found = []
    for number in range(count):
        torch.manual_seed(seed + number)
        found.append(Classifier(Tower(), torch.randn(3, 4), torch.randn(3), NAMES).eval())
    return found


@torch.no_grad()
def on(images, labels, split="val"):
    def evaluate(classifier):
        logits = classifier(images)
        return SimpleNamespace(features=images, logits=logits, labels=labels, split=split)

    return evaluate


@pytest.fixture
def data():
    torch.manual_seed(9)
    return torch.randn(200, 6), torch.randint(0, 3, (200,))


def bits(classifier):
    return classifier.state_dict()


def test_a_soup_of_one_model_and_of_equal_models_has_its_bits(data):
    (one,) = classifiers(1)
    soups = [uniform_soup([one]), uniform_soup([one, copy.deepcopy(one), copy.deepcopy(one)])]
    soups.append(greedy_soup([one], on(*data))[0])
    for soup in soups:
        assert soup is not one
        assert all(torch.equal(bits(soup)[name], value) for name, value in bits(one).items())


def test_the_uniform_soup_is_the_mean_of_all_weights():
    parts = classifiers(4)
    before = [copy.deepcopy(bits(part)) for part in parts]
    soup = bits(uniform_soup(parts))
    for name, value in soup.items():
        if value.is_floating_point():
            mean = np.mean([state[name].numpy().astype(np.float64) for state in before], axis=0)
            np.testing.assert_allclose(value.numpy(), mean, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(bits(p)[name], b[name]) for p, b in zip(parts, before, strict=True))
    assert soup["clip.steps"] == 3


@pytest.mark.parametrize("seed", range(8))
def test_the_greedy_soup_follows_the_recipe_and_is_no_worse_than_its_best_ingredient(data, seed):
    parts = classifiers(6, seed=10 * seed)
    soup, recipe = greedy_soup(parts, on(*data))
    images, labels = data

    def accuracy(states):
        mean = copy.deepcopy(parts[0])
        mean.load_state_dict(
            {n: torch.stack([s[n].double() for s in states]).mean(0) for n in states[0]}
        )
        return float((mean(images).argmax(1) == labels).double().mean())

    states = [bits(part) for part in parts]
    single = [accuracy([state]) for state in states]
    assert recipe.single == pytest.approx(single)
    order = sorted(range(6), key=lambda i: (-single[i], i))
    taken = [order[0]]
    for i in order[1:]:
        if accuracy([states[j] for j in (*taken, i)]) >= accuracy([states[j] for j in taken]):
            taken.append(i)
    assert list(recipe.ingredients) == taken
    assert recipe.accuracy >= max(single)
    got = on(*data)(soup)
    assert recipe.accuracy == float((got.logits.argmax(1) == labels).double().mean())
    assert f"{len(taken)} of 6 models" in str(recipe)


def test_models_that_predict_nothing_are_left_out(data):
    parts = classifiers(3)
    with torch.no_grad():
        parts[0].head.weight.fill_(float("nan"))
    soup, recipe = greedy_soup(parts, on(*data))
    assert recipe.single[0] is None
    assert 0 not in recipe.ingredients
    assert all(value.isfinite().all() for value in bits(soup).values())
    with pytest.raises(InputError, match="classifiers: got none with a prediction"):
        greedy_soup(parts[:1], on(*data))


def test_what_cannot_be_a_soup_is_refused(data):
    one, other = classifiers(2)
    other.classnames = ["cat", "dog", "newt"]
    for soup in (uniform_soup, lambda parts: greedy_soup(parts, on(*data))):
        with pytest.raises(InputError, match="classifiers: got none, expected at least one"):
            soup([])
        with pytest.raises(InputError, match=r"classifiers\[1\]: got 3 classes \(cat, dog, newt\)"):
            soup([one, other])
    with pytest.raises(InputError, match="expected a validation split"):
        greedy_soup([one], on(*data, split="test"))


def test_a_rebuilt_head_comes_from_the_mean_text_tower(data):
    from robustft.models import Classifier, load_clip
    from robustft.models.heads import zero_shot_weights

    clip = load_clip("robustft-tiny")
    parts = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = copy.deepcopy(clip.model)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p))
        parts.append(Classifier(model, torch.randn(3, 64), None, NAMES).eval())
    images = torch.randn(30, 3, 24, 24)
    rebuild = (clip.tokenizer, ["a {}.", "the {}"])
    for soup in (
        uniform_soup(parts, rebuild=rebuild),
        greedy_soup(parts, on(images, torch.randint(0, 3, (30,))), rebuild=rebuild)[0],
    ):
        if any(torch.equal(soup.head.weight, part.head.weight) for part in parts):
            continue  # the greedy soup may be one model, with the head that it came with
        expected = soup.clip.logit_scale.exp() * zero_shot_weights(
            soup.clip, rebuild[0], NAMES, rebuild[1]
        )
        torch.testing.assert_close(soup.head.weight, expected)

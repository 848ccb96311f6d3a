"""Masks put together to maps, and their measures, beside NumPy's and scikit-learn's."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn import metrics

from robustft.accuracy import NONE
from robustft.data import load_dataset
from robustft.data.registry import REGISTRY
from robustft.errors import InputError
from robustft.evaluate.segmentation import (
    MEASURES,
    assemble,
    confusion_matrix,
    segment,
    segmentation_measures,
)
from tests import scenes

SET = """
rooms:
  title: Rooms
  reader: regions
  classnames: [wall, floor, bed, lamp]
  weight: quality
  assembly: RULE
  test: {at: [rooms], masks_in: masks}
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch, tmp_path):
    list(REGISTRY)
    monkeypatch.setattr(REGISTRY, "_sets", dict(REGISTRY._sets))
    monkeypatch.setattr("robustft.cache.folder", lambda: tmp_path / "cache")


def by_numpy(masks, probabilities, weights, rule):
    """One pixel after the other, in float64."""
    found = np.full(masks.shape[1:], -1)
    scores = probabilities.astype(np.float64) * weights[:, None]
    for place in np.ndindex(found.shape):
        on = [scores[m] for m in range(len(masks)) if masks[(m, *place)]]
        if on and rule == "sum":
            found[place] = np.sum(on, axis=0).argmax()
        elif on:
            found[place] = max(on, key=np.max).argmax()
    return found


@pytest.mark.parametrize("rule", ["sum", "highest"])
@pytest.mark.parametrize("numbers", [2**24, 50])
def test_pixels_get_the_class_that_numpy_gives_them(rule, numbers, monkeypatch):
    monkeypatch.setattr("robustft.evaluate.segmentation._NUMBERS", numbers)
    rng = np.random.default_rng(0)
    masks = rng.random((7, 11, 13)) < 0.2
    probabilities = rng.dirichlet(np.ones(5) / 2, 7).astype(np.float32)
    weights = rng.uniform(0.1, 1, 7)
    given = [torch.from_numpy(x) for x in (masks, probabilities, weights)]
    found = assemble(*given, rule=rule)
    assert np.array_equal(found.numpy(), by_numpy(masks, probabilities, weights, rule))
    assert (found == NONE).sum() == (~masks.any(axis=0)).sum() > 0


def test_the_rules_differ_where_many_weak_masks_outvote_a_strong_one():
    masks = torch.ones(3, 1, 1, dtype=torch.bool)
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9 - 1e-3]])
    assert assemble(masks, probabilities).tolist() == [[1]]
    assert assemble(masks, probabilities, rule="highest").tolist() == [[0]]
    weak = torch.tensor([1.0, 0.1, 0.1])
    assert assemble(masks, probabilities, weak).tolist() == [[0]]
    broken = probabilities.clone()
    broken[0, 0] = torch.nan
    for rule in ("sum", "highest"):
        assert assemble(masks, broken, rule=rule).tolist() == [[1]], "a diverged row says nothing"
        none = assemble(masks[:1], broken[:1], rule=rule)
        assert none.tolist() == [[NONE]]
        assert assemble(masks[:0], broken[:0], rule=rule).tolist() == [[NONE]]
        tied = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
        assert assemble(masks[:2], tied, rule=rule).tolist() == [[0]]


def test_measures_are_scikit_learns():
    rng = np.random.default_rng(1)
    truth = rng.choice([-1, 0, 1, 3], 5000, p=[0.1, 0.5, 0.3, 0.1])  # 2 and 4 do not occur
    said = np.where(rng.random(5000) < 0.6, truth, rng.integers(-1, 5, 5000))
    half = len(truth) // 2
    confusion = sum(
        confusion_matrix(torch.from_numpy(said[part]), torch.from_numpy(truth[part]), 5)
        for part in (slice(half), slice(half, None))
    )
    counted = truth >= 0
    y, z = truth[counted], said[counted]
    ours = metrics.confusion_matrix(y, np.where(z < 0, 5, z), labels=range(6))[:5]
    assert confusion.dtype == torch.int64
    assert np.array_equal(confusion.numpy(), ours)
    found, there = segmentation_measures(confusion), [0, 1, 3]
    each = metrics.jaccard_score(y, z, labels=there, average=None)
    assert [found["iou"][c] for c in there] == pytest.approx(each.tolist())
    assert found["iou"][2] is found["iou"][4] is None
    assert found["miou"] == pytest.approx(each.mean())
    assert found["pixel-accuracy"] == pytest.approx(metrics.accuracy_score(y, z))
    recall = metrics.recall_score(y, z, labels=there, average="macro")
    assert found["mean-accuracy"] == pytest.approx(recall)
    shares = [(y == c).mean() for c in there]
    assert found["frequency-weighted-iou"] == pytest.approx(np.dot(shares, each))


def test_the_mean_is_torchmetrics_where_every_class_occurs():
    segmentation = pytest.importorskip("torchmetrics.classification")
    generator = torch.Generator().manual_seed(0)
    truth, said = torch.randint(0, 4, (2, 900), generator=generator)
    jaccard = segmentation.MulticlassJaccardIndex(num_classes=4, average="macro", ignore_index=-1)
    truth[:50] = -1
    found = segmentation_measures(confusion_matrix(said, truth, 4))
    assert found["miou"] == pytest.approx(float(jaccard(said, truth)))


@pytest.mark.parametrize("rule", ["sum", "highest"])
def test_a_data_set_is_measured_as_numpy_measures_it(tmp_path, rule):
    found = scenes.noise(tmp_path / "rooms", 5)
    (tmp_path / "x.yaml").write_text(SET.replace("RULE", rule))
    REGISTRY.register_file(tmp_path / "x.yaml")
    data = load_dataset(f"rooms@{tmp_path}", "test")
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (len(data), 4)).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.zeros((4, 5), dtype=np.int64)
    for k, (_, truth, masks, weights) in enumerate(found):
        kept = [m for m in range(len(masks)) if (truth[masks[m]] >= 0).any()]
        mine = shares[data.scene.numpy() == k]
        said = by_numpy(masks[kept], mine, weights[kept], rule)
        for true, one in zip(truth[truth >= 0], said[truth >= 0], strict=True):
            expected[true, one] += 1
    scores = torch.from_numpy(logits)
    confusion = segment(data, scores)
    assert np.array_equal(confusion.numpy(), expected)
    log_p = scores.log_softmax(dim=1)
    assert torch.equal(segment(data, log_p), confusion), "log-probabilities are logits"
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    assert torch.equal(segment(data, scores[shuffled], rows=shuffled), confusion)
    parts = [segment(data, scores, share=_Part(rank, 2)) for rank in range(2)]
    assert torch.equal(sum(parts), confusion), "two processes take different images"
    assert all(0 < int(part.sum()) < int(confusion.sum()) for part in parts)
    readable = data.scene != 1
    left = segment(data, scores[readable], rows=readable.nonzero().flatten())
    counted = sum(int((truth >= 0).sum()) for k, (_, truth, _, _) in enumerate(found) if k != 1)
    assert int(left.sum()) == counted, "an image that could not be read is left out"


@dataclasses.dataclass
class _Part:
    rank: int
    size: int

    def sum(self, value):
        return value


def test_a_subset_of_classes_is_all_that_can_be_said(tmp_path):
    scenes.noise(tmp_path / "rooms", 2)
    (tmp_path / "x.yaml").write_text(SET.replace("RULE", "sum"))
    REGISTRY.register_file(tmp_path / "x.yaml")
    data = load_dataset(f"rooms@{tmp_path}", "test")
    scores = torch.zeros(len(data), 4)
    scores[:, 3] = 9.0
    within = segment(data, scores, class_subset=torch.tensor([1, 2]))
    assert int(within[:, [0, 3]].sum()) == 0
    assert int(within[:, 1].sum()) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: assemble(torch.zeros(2, 3, 3), torch.zeros(2, 4)), "masks: got torch.float32"),
        (lambda: assemble(torch.zeros(2, 3, 3) > 0, torch.zeros(3, 4)), r"expected \[2, C\]"),
        (lambda: assemble(torch.zeros(0, 1, 1) > 0, torch.zeros(0, 2), rule="x"), "rule: got 'x'"),
        (lambda: segmentation_measures(torch.zeros(3, 3)), r"expected \[C, C \+ 1\]"),
        (lambda: segmentation_measures(torch.zeros(3, 4)), "got no pixel"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_measures_have_names():
    assert set(MEASURES) < set(segmentation_measures(torch.eye(2, 3, dtype=torch.int64)))

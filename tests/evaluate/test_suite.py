"""A suite gives each dataset its role, and the head that its classes ask for."""

import numpy as np
import pytest
import torch

from robustft.data.datasets import ImageDataset
from robustft.evaluate.suite import Suite
from robustft.models import Classifier, copy_clip, load_clip

NAMES = ["zero", "one", "two"]
TEMPLATES = ["the digit {}", "a photo of the digit {}."]


@pytest.fixture(scope="module")
def clip():
    return load_clip("robustft-tiny", "glyphs")


def _dataset(clip, name, classnames, labels):
    rng = np.random.default_rng(len(labels))
    pixels = rng.integers(0, 256, (len(labels), 24, 24, 3), dtype=np.uint8)
    dataset = ImageDataset(pixels, labels, classnames=classnames, name=name, split="test")
    return dataset.preloaded(clip.preprocess_val)


@pytest.fixture(scope="module")
def suite(clip):
    sets = [
        _dataset(clip, "Home", NAMES, [0, 1, 2, 2, 1]),
        _dataset(clip, "Away", NAMES, [0, 1, 2, 0]),
        _dataset(clip, "Part", ["two", "zero"], [0, 0, 1, 0, 1, 1]),
        _dataset(clip, "Other", ["a", "b"], [0, 1, 1]),
    ]
    return Suite(clip, NAMES, TEMPLATES, sets, id_name="Home")


def test_roles(suite):
    roles = {name: entry.role for name, entry in suite.entries.items()}
    assert roles == {"Home": "id", "Away": "ood", "Part": "ood", "Other": "forgetting"}


def test_a_part_of_the_classes_is_scored_among_that_part(clip, suite):
    classifier = Classifier.zero_shot(clip, NAMES, TEMPLATES)
    part = suite.entries["Part"].dataset
    assert part.labels.tolist() == [2, 2, 0, 2, 0, 0], "labels are indices into the home classes"
    out = suite.outputs(classifier)
    line = next(x for x in suite.records(out, **_who()) if x["dataset"] == "Part")
    with torch.no_grad():
        logits = classifier(torch.stack([part[i]["image"] for i in range(len(part))]))
    logits[:, 1] = -torch.inf  # "one" does not occur and cannot be predicted
    expected = (logits.argmax(1) == part.labels).double().mean().item()
    assert line["Part:top1"] == pytest.approx(expected)


def test_other_classes_get_a_head_from_the_models_own_text_tower(clip, suite):
    tuned = copy_clip(clip)
    with torch.no_grad():
        tuned.model.text_projection.mul_(-1)
    classifier = Classifier.zero_shot(tuned, NAMES, TEMPLATES)
    other = suite.entries["Other"].dataset
    expected = Classifier.zero_shot(tuned, ["a", "b"], TEMPLATES)
    with torch.no_grad():
        logits = expected(torch.stack([other[i]["image"] for i in range(len(other))]))
    found = suite.outputs(classifier)["Other"].logits
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-3)
    before = suite.outputs(Classifier.zero_shot(clip, NAMES, TEMPLATES))["Other"].logits
    torch.testing.assert_close(found, -before, rtol=1e-4, atol=1e-3)


def test_scores_replace_the_logits(clip, suite):
    out = suite.outputs(Classifier.zero_shot(clip, NAMES, TEMPLATES))

    def right(outputs, name):
        return torch.nn.functional.one_hot(outputs.labels, outputs.logits.shape[1]).float()

    lines = suite.records(out, right, **_who())
    assert [line[f"{line['dataset']}:top1"] for line in lines] == [1.0, 1.0, 1.0, 1.0]
    assert [line["n"] for line in lines] == [5, 4, 6, 3]


def test_geometry_of_an_unchanged_model_is_kept_entirely(clip, suite):
    out = suite.outputs(Classifier.zero_shot(clip, NAMES, TEMPLATES))
    line = suite.geometry_record(out, out, "Home", **_who())
    assert line["role"] == "geometry"
    assert line["RSA:euclidean"] == pytest.approx(1.0)
    assert line["RSA:cosine"] == pytest.approx(1.0)
    assert line["CKA:linear"] == pytest.approx(1.0)
    assert line["difference-spread"] == 0.0


def test_a_line_has_every_measure_and_no_top_five_of_five_classes(clip, suite):
    out = suite.outputs(Classifier.zero_shot(clip, NAMES, TEMPLATES))
    line = next(x for x in suite.records(out, **_who()) if x["dataset"] == "Part")
    p = out["Part"].logits[:, [0, 2]].double().softmax(1)
    own = (out["Part"].labels == 2).long()
    right = p[torch.arange(6), own]
    assert line["Part:nll"] == pytest.approx(float(-right.log().mean()))
    assert line["Part:brier"] == pytest.approx(float(2 * (1 - right).square().mean()))
    assert {k for k in line if k.startswith("Part:")} == {
        f"Part:{k}" for k in ("top1", "mean-per-class", "ece", "adaptive-ece", "nll", "brier")
    }


def _who():
    return {"method": "zero-shot", "base": None, "alpha": None, "selected": True, "seed": 0}


def test_an_ensemble_reads_every_image_once_though_none_is_kept(clip):
    """Test sets, validation and training images, for both models."""
    from robustft.ensemble import VRF
    from robustft.evaluate.curves import fit_vrf, output_curve, outputs_of_both

    reads = []

    class Noting:
        def __init__(self, name, inner):
            self.name, self.inner = name, inner

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, index):
            reads.append((self.name, index))
            return self.inner[index]

    def noted(name, names, labels, split):
        rng = np.random.default_rng(1)
        pixels = rng.integers(0, 256, (len(labels), 24, 24, 3), dtype=np.uint8)
        data = ImageDataset(pixels, labels, classnames=names, name=name, split=split)
        data.images = Noting(f"{name} {split}", data.images)
        return data.with_transform(clip.preprocess_val)

    sets = [noted("Home", NAMES, [0, 1, 2], "test"), noted("Other", ["a", "b"], [0, 1], "test")]
    suite = Suite(clip, NAMES, TEMPLATES, sets, id_name="Home", keep_bytes=0)
    plain = Classifier.zero_shot(clip, NAMES, TEMPLATES)
    tuned = Classifier.zero_shot(copy_clip(clip), NAMES, TEMPLATES)
    for parameter in tuned.clip.parameters():
        parameter.data.mul_(1.01)
    train, val = (noted("Home", NAMES, [0, 1, 2] * 3, split) for split in ("train", "val"))
    before, after = outputs_of_both(suite, plain, tuned)
    assert before["Home"].logits.shape == after["Home"].logits.shape == (3, 3)
    assert not torch.equal(before["Other"].logits, after["Other"].logits)
    fit_vrf(VRF(), suite, plain, tuned, train, val)
    assert len(reads) == len(set(reads)) == 3 + 2 + 9 + 9
    del reads[:]
    output_curve(
        suite, plain, tuned, val, [0.0, 1.0], before=before, after=after, seed=0, base="ft"
    )
    assert len(reads) == len(set(reads)) == 9


def _grouped(clip, **more):
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (40, 24, 24, 3), dtype=np.uint8)
    labels = [0, 1] * 20
    data = ImageDataset(pixels, labels, classnames=NAMES, name="Set", split="test", **more)
    return data.preloaded(clip.preprocess_val)


def test_of_merged_classes_the_greatest_logit_counts_in_every_ensemble(clip):
    """ObjectNet: an image of "zero" is right where the model says "two", which is merged with it.
    A fine-tuned and a zero-shot model alike, and with a linear probe's shared features."""
    from robustft.ensemble.output import output_ensemble
    from robustft.evaluate.curves import outputs_of_both

    data = _grouped(clip, merged=[[0, 2], [1]], class_subset=[0, 1])
    suite = Suite(clip, NAMES, TEMPLATES, [data], id_name=None)
    zero_shot = Classifier.zero_shot(clip, NAMES, TEMPLATES)
    generator = torch.Generator().manual_seed(0)
    weight = zero_shot.head.weight + torch.randn(zero_shot.head.weight.shape, generator=generator)
    probe = Classifier(clip.model, weight.detach(), classnames=NAMES)
    other = copy_clip(clip)
    with torch.no_grad():
        other.model.visual.trunk.blocks[0].mlp.fc1.weight.mul_(0.5)
    for tuned in (probe, Classifier(other.model, weight.detach(), classnames=NAMES)):
        before, after = outputs_of_both(suite, zero_shot, tuned)
        raw = []
        for model, out in ((zero_shot, before["Set"]), (tuned, after["Set"])):
            with torch.no_grad():
                z = model(data.images.tensors)
            raw.append(torch.stack([z[:, [0, 2]].amax(1), z[:, 1]], dim=1))
            line = suite.records({"Set": out}, **_who())[0]
            expected = (raw[-1].argmax(1) == data.labels).double().mean().item()
            assert line["Set:top1"] == pytest.approx(expected)
        subset = after["Set"].class_subset
        logits = (after["Set"].logits, before["Set"].logits)
        mixed = output_ensemble(*logits, 0.5, class_subset=subset)
        expected = (raw[0].softmax(1) + raw[1].softmax(1)) / 2
        assert torch.allclose(mixed[:, :2], expected, atol=1e-6)
        assert (raw[1].argmax(1) != tuned(data.images.tensors)[:, :2].argmax(1)).any()


def test_a_sets_own_metrics_are_recorded(clip):
    groups = [0, 0, 1, 1] * 10
    metrics = {"groups": groups, "group_names": ["Asia", "Europe"]}
    metrics["metrics"] = ["macro-f1", "worst-group"]
    suite = Suite(clip, NAMES, TEMPLATES, [_grouped(clip, **metrics)], id_name=None)
    out = suite.outputs(Classifier.zero_shot(clip, NAMES, TEMPLATES))
    (line,) = suite.records(out, **_who())
    hits = out["Set"].logits.argmax(1) == out["Set"].labels
    by_region = {n: hits[torch.tensor(groups) == g].double().mean() for g, n in enumerate("AE")}
    worst = min(by_region, key=by_region.get)
    assert line["Set:worst-group"] == pytest.approx(by_region[worst].item())
    assert line["Set:worst-group-is"][0] == worst
    assert 0 <= line["Set:macro-f1"] <= 1

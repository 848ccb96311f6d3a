"""VRF on a linear probe: both models out of one forward pass."""

import copy

import pytest
import torch

from robustft.ensemble import VRF, TwoHeads, same_encoder
from robustft.errors import InputError

NAMES = ["cat", "dog", "newt"]


@pytest.fixture
def pair():
    from robustft.models import Classifier, load_clip

    torch.manual_seed(0)
    clip = load_clip("robustft-tiny")
    zero_shot = Classifier.zero_shot(clip, NAMES, ["a {}."])
    probed = copy.deepcopy(zero_shot)
    with torch.no_grad():
        probed.head.weight.add_(torch.randn_like(probed.head.weight))
    return zero_shot.eval(), probed.eval()


def counting(classifier):
    calls = []
    classifier.clip.visual.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_one_forward_pass_gives_both_models_outputs(pair):
    zero_shot, probed = pair
    images = torch.randn(5, 3, 24, 24)
    both = TwoHeads(zero_shot, probed).eval()
    calls = counting(both.classifier)
    features, finetuned, zeroshot = both(images)
    assert len(calls) == 1
    assert torch.equal(features, probed.features(images))
    assert torch.equal(finetuned, probed(images))
    assert torch.equal(zeroshot, zero_shot(images))


def test_vrf_of_two_heads_is_vrf_of_two_models(pair):
    zero_shot, probed = pair
    torch.manual_seed(1)
    images, labels = torch.randn(40, 3, 24, 24), torch.randint(0, 3, (40,))
    with torch.no_grad():
        split = probed.features(images), probed(images), zero_shot(images), labels
    vrf = VRF(a=0.5, b=0.3, calibrate=False).fit(*split)
    both = TwoHeads(zero_shot, probed).eval()
    assert torch.equal(both.predict_proba(vrf, images), vrf.predict_proba(*split[:3]))


def test_another_encoder_or_other_classes_are_refused(pair):
    zero_shot, probed = pair
    assert same_encoder(zero_shot, probed)
    moved = copy.deepcopy(probed)
    with torch.no_grad():
        next(moved.clip.visual.parameters()).flatten()[0] += 1e-3
    assert not same_encoder(zero_shot, moved)
    with pytest.raises(InputError, match="probed: got an encoder that differs"):
        TwoHeads(zero_shot, moved)
    probed.classnames = ["cat", "dog", "eft"]
    with pytest.raises(InputError, match=r"probed: got 3 classes \(cat, dog, eft\)"):
        TwoHeads(zero_shot, probed)


def test_a_suite_runs_a_probes_encoder_once(pair):
    from robustft.data import load_dataset
    from robustft.evaluate.curves import (
        fit_vrf,
        output_curve,
        outputs_of_both,
        vrf_distances,
        vrf_lines,
    )
    from robustft.evaluate.suite import Suite
    from robustft.models import Classifier, load_clip

    clip = load_clip("robustft-tiny")
    digits = load_dataset("digits", "val").preloaded(clip.preprocess_val)
    train = digits.subset(range(60), split="train")
    val = digits.subset(range(60, 100), split="val")
    test = digits.subset(range(100, 140), split="test")
    letters = (
        load_dataset("letters", "test")
        .preloaded(clip.preprocess_val)
        .subset(range(30), split="test")
    )
    suite = Suite(clip, digits.classnames, ["a {}."], [test, letters], id_name=test.name)
    zero_shot = Classifier.zero_shot(clip, digits.classnames, ["a {}."])
    probed = copy.deepcopy(zero_shot)
    with torch.no_grad():
        probed.head.weight.add_(torch.randn_like(probed.head.weight))

    before, after = outputs_of_both(suite, zero_shot, probed)
    for name, out in suite.outputs(zero_shot).items():
        torch.testing.assert_close(before[name].logits, out.logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(before[name].labels, out.labels)
    assert not torch.equal(before[test.name].logits, after[test.name].logits)

    never = counting(zero_shot)
    lines, choice = output_curve(
        suite, zero_shot, probed, val, [0.0, 0.5, 1.0], before=before, after=after, space="logit"
    )
    fitted = fit_vrf(VRF(), suite, zero_shot, probed, train, val)
    assert never == []
    both = {"before": before, "after": after}
    weighed = vrf_lines(fitted, suite, vrf_distances(fitted, **both), **both, val=val, seed=0)
    assert {(x["a"], x["b"]) for x in weighed} == {(fitted.a_, fitted.b_)}
    on = {"dataset": val.name, "split": "val", "n": 40}
    for line in (*lines, *weighed):
        assert (line["model"], line["pretrained"]) == ("robustft-tiny", None)
        assert line.get("chosen_on") == (on if line.get("selected", True) else None)
    assert {line["method"] for line in lines} == {"lse"}
    top1 = {x["alpha"]: x[f"{test.name}:top1"] for x in lines if x["role"] == "id"}
    mixed = 0.5 * after[test.name].logits + 0.5 * before[test.name].logits
    assert top1[0.5] == float((mixed.argmax(1) == after[test.name].labels).double().mean())
    assert choice.alpha in (0.0, 0.5, 1.0)

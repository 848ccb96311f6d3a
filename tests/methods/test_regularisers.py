"""Each regularised method's loss and gradient against its formula in NumPy, float64.

The formulas are computed on random tensors, or on a model that was moved at random, and share no
code with the methods.
"""

import numpy as np
import pytest
import torch

from robustft.methods import make_method

B, C, D = 6, 4, 64


@pytest.fixture(scope="module")
def clip():
    from robustft.models import load_clip

    torch.manual_seed(1)
    return load_clip("robustft-tiny")


NAMES, TEMPLATES = ["one", "two", "three", "four"], ["a photo of a {}.", "the {}.", "a {}"]


def batch_of(clip):
    torch.manual_seed(2)
    label = torch.tensor([0, 1, 1, 2, 3, 0])
    return {
        "image": torch.randn(B, 3, 24, 24),
        "label": label,
        "text": clip.tokenizer([TEMPLATES[0].format(NAMES[i]) for i in label]),
        "ref_image": torch.randn(5, 3, 24, 24),
        "ref_text": clip.tokenizer([f"a red letter {c}" for c in "abcde"]),
    }


def moved(clip, name, **options):
    """The method, and its module with every trained weight moved."""
    method = make_method(name, **options)
    module = method.setup(clip, NAMES, TEMPLATES)
    method.begin_stage(module, 0)
    method.train_mode(module)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(0.02 * torch.randn_like(p))
    return method, module


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def gradients(loss, module):
    module.zero_grad()
    loss.backward()
    return {n: array(p.grad) for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"biases": True}, {"head": "zero", "beta": 0.3}])
def test_l2_sp_adds_the_squared_distance_to_where_the_weights_began(clip, options):
    batch = batch_of(clip)
    method, module = moved(clip, "l2-sp", alpha=0.4, **options)
    plain, other = moved(clip, "ft")
    other.load_state_dict(module.state_dict())
    base = plain.loss(other, batch)[0]
    loss, values = method.loss(module, batch)

    beta = options.get("beta", 0.01)
    began = {f"classifier.clip.{name}": array(p) for name, p in clip.model.named_parameters()}
    head = make_method("ft").setup(clip, NAMES, TEMPLATES).classifier.head
    zero = 0.0 if options.get("head") == "zero" else 1.0
    began |= {f"classifier.head.{name}": zero * array(p) for name, p in head.named_parameters()}
    expected, slope = 0.0, {}
    for name, p in module.named_parameters():
        if not p.requires_grad or (p.ndim < 2 and "biases" not in options):
            continue
        weight = beta if name.startswith("classifier.head.") else 0.4
        difference = array(p) - began[name]
        expected += weight / 2 * (difference**2).sum()
        slope[name] = weight * difference
    assert expected > 0.1
    assert values["l2_sp"].item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(base.item() + expected, rel=1e-5)
    got, without = gradients(loss, module), gradients(base, other)
    assert got.keys() == without.keys()
    for name in got:
        wanted = without[name] + slope.get(name, 0.0)
        np.testing.assert_allclose(got[name], wanted, rtol=1e-3, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "options", "base"), [("l2-sp", {"alpha": 0.0, "beta": 0.0}, "ft")]
)
def test_without_its_weight_a_method_is_its_base_bit_for_bit(clip, name, options, base):
    batch = batch_of(clip)
    losses, slopes = [], []
    for one, given in ((name, options), (base, {})):
        method, module = moved(clip, one, **given)
        method.begin_step(module, 0, 2)
        loss, _ = method.loss(module, batch)
        losses.append(loss)
        slopes.append(gradients(loss, module))
    assert torch.equal(*losses)
    assert slopes[0].keys() == slopes[1].keys()
    for name in slopes[0]:
        np.testing.assert_array_equal(slopes[0][name], slopes[1][name])

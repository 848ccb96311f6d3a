"""TPGM: projections against NumPy, their ends, and radii that lower the validation loss."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from robustft.ensemble import project, tpgm
from robustft.ensemble.tpgm import RadiiAdam, distances, projected
from robustft.errors import InputError

NAMES = ["one", "two", "three"]


@pytest.fixture(scope="module")
def pair():
    """A zero-shot classifier of digits, and one that was moved far at random."""
    from robustft.data import load_dataset
    from robustft.models import Classifier, load_clip

    clip = load_clip("robustft-tiny", "glyphs")
    val = (
        load_dataset("digits", "val").preloaded(clip.preprocess_val).subset(range(120), split="val")
    )
    zero_shot = Classifier.zero_shot(clip, val.classnames, val.templates).eval()
    tuned = copy.deepcopy(zero_shot)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if name.startswith(("clip.visual", "head")):
                p.add_(0.2 * p.std(unbiased=False).clamp_min(0.05) * torch.randn_like(p))
            elif name == "clip.text_projection":
                p.add_(0.1)
    return zero_shot, tuned, val


def tensors(seed):
    torch.manual_seed(seed)
    return [torch.randn(*shape).double() for shape in ((5, 4), (3, 2, 2, 2), (6,))]


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_projection_and_its_gradient_by_the_radii(norm):
    start, tuned, weight = (tensors(seed) for seed in (1, 2, 3))
    radii = torch.tensor([1.3, 0.7, 0.4], dtype=torch.double, requires_grad=True)
    lengths = distances(start, tuned, norm)
    got = projected(start, tuned, radii, lengths)
    sum((w * g).sum() for w, g in zip(weight, got, strict=True)).backward()
    for i, (a, b, w) in enumerate(zip(start, tuned, weight, strict=True)):
        a, b, w, gamma = a.numpy(), b.numpy(), w.numpy(), radii[i].item()
        moved = b - a
        if norm == "l2":
            n = np.sqrt((moved**2).sum())
        elif moved.ndim == 1:
            n = abs(moved)
        else:
            n = abs(moved).reshape(len(moved), -1).sum(1).reshape(-1, *[1] * (moved.ndim - 1))
        inside = gamma < n
        np.testing.assert_allclose(
            got[i].detach().numpy(), a + np.minimum(1, gamma / n) * moved, rtol=1e-9, atol=1e-12
        )
        slope = (w * moved * np.where(inside, 1 / n, 0.0)).sum()
        assert radii.grad[i].item() == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_radius_infinity_is_the_fine_tuned_and_zero_the_pretrained_model(pair, norm):
    zero_shot, tuned, _ = pair
    before, after = zero_shot.state_dict(), tuned.state_dict()
    for radius, end in ((float("inf"), after), (0.0, before)):
        got = project(zero_shot, tuned, radius, norm=norm).state_dict()
        for name, value in got.items():
            seen = name.startswith(("clip.visual.", "head."))
            assert torch.equal(value, end[name] if seen else after[name]), name


def test_one_tensor_can_be_projected_alone(pair):
    zero_shot, tuned, _ = pair
    name = "clip.visual.trunk.pos_embed"
    got = project(zero_shot, tuned, {name: 0.25}).state_dict()
    moved = (got[name] - zero_shot.state_dict()[name]).norm()
    assert moved.item() == pytest.approx(0.25, rel=1e-4)
    others = [n for n, value in tuned.state_dict().items() if not torch.equal(value, got[n])]
    assert others == [name]
    with pytest.raises(InputError, match="radius: got 'x', which is no tensor that has moved"):
        project(zero_shot, tuned, {"x": 1.0})
    with pytest.raises(InputError, match="radius: got -1"):
        project(zero_shot, tuned, -1.0)


def test_radii_take_the_steps_of_adam_between_their_bounds():
    torch.manual_seed(4)
    lengths = [torch.tensor(100.0), torch.tensor([60.0, 200.0])]
    ours = RadiiAdam(2)
    ours.begin(lengths)
    assert ours.radius.tolist() == [50.0, 30.0]
    parameter = torch.nn.Parameter(ours.radius.clone())
    adam = torch.optim.Adam([parameter], lr=0.3)
    for gradient in torch.randn(20, 2):
        parameter.grad = gradient
        adam.step()
        ours.step(gradient, 0.3, lengths)
        torch.testing.assert_close(ours.radius, parameter.data)
    for gradient, ends in ((-1.0, [100.0, 200.0]), (1.0, [1e-8, 1e-8])):
        for _ in range(30):
            ours.step(torch.full((2,), gradient), 50.0, lengths)
        assert ours.radius.tolist() == pytest.approx(ends)


def loss_of(classifier, val):
    with torch.no_grad():
        return F.cross_entropy(classifier(val.images.tensors), val.labels).item()


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_learnt_radii_lower_the_validation_loss(pair, norm):
    zero_shot, tuned, val = pair
    lr = {"l2": 0.1, "mars": 0.05}[norm]
    kept = copy.deepcopy(tuned.state_dict())
    first, _ = tpgm(zero_shot, tuned, val, norm=norm, iterations=0)
    result, learnt = tpgm(zero_shot, tuned, val, norm=norm, iterations=40, lr=lr, batch_size=40)
    again, _ = tpgm(zero_shot, tuned, val, norm=norm, iterations=40, lr=lr, batch_size=40)
    ends = [loss_of(model, val) for model in (zero_shot, tuned, first)]
    assert loss_of(result, val) < min(ends)
    assert len(learnt.losses) == 40
    state = result.state_dict()
    for name, value in state.items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(tuned.state_dict()[name], kept[name])
    if norm == "l2":
        for name, radius in learnt.radius.items():
            moved = (state[name] - zero_shot.state_dict()[name]).norm().item()
            assert moved == pytest.approx(min(radius, learnt.moved[name]), rel=1e-3, abs=1e-6)
    assert "clip.text_projection" not in learnt.radius
    assert torch.equal(state["clip.text_projection"], kept["clip.text_projection"])


def test_excluded_tensors_stay_fine_tuned(pair):
    zero_shot, tuned, val = pair
    result, learnt = tpgm(zero_shot, tuned, val, iterations=1, exclude=["head."])
    assert torch.equal(result.head.weight, tuned.head.weight)
    assert not any(name.startswith("head.") for name in learnt.radius)


def test_a_model_that_has_not_moved_stays(pair):
    zero_shot, _, val = pair
    result, learnt = tpgm(zero_shot, zero_shot, val)
    assert learnt.radius == {}
    assert all(torch.equal(v, zero_shot.state_dict()[n]) for n, v in result.state_dict().items())


def test_what_cannot_be_chosen_on_is_refused(pair):
    zero_shot, tuned, val = pair
    with pytest.raises(InputError, match="expected a validation split"):
        tpgm(zero_shot, tuned, val.subset(range(10), split="test"))
    with pytest.raises(InputError, match="norm: got 'l1', expected one of l2, mars"):
        tpgm(zero_shot, tuned, val, norm="l1")
    with pytest.raises(InputError, match="lr: got 0"):
        tpgm(zero_shot, tuned, val, lr=0.0)
    with pytest.raises(InputError, match="iterations, batch_size, val: got -1"):
        tpgm(zero_shot, tuned, val, iterations=-1)

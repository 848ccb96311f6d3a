"""Each regularised method's loss and gradient against its formula in NumPy, float64.

The formulas are computed on random tensors, or on a model that was moved at random, and share no
code with the methods.
"""

import dataclasses

import numpy as np
import pytest
import torch

from robustft.errors import InputError
from robustft.methods import make_method
from robustft.methods.token_rows import Tokens

B, C, D = 6, 4, 64


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


class Given(torch.nn.Module):
    """Hands a method these tensors in place of a module's outputs."""

    def __init__(self, *tensors):
        super().__init__()
        self.tensors = tensors

    def forward(self, **_):
        return self.tensors


def rows(count, width=D, length=1.0):
    """Random rows of this length."""
    x = torch.randn(count, width)
    return length * x / x.norm(dim=1, keepdim=True)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(z, label):
    """The mean over rows, and its gradient."""
    p = softmax(z)
    hot = np.eye(z.shape[1])[label]
    return -(hot * np.log(p)).sum(1).mean(), (p - hot) / len(z)


def check(loss, expected, *leaves):
    """A loss and its gradients with respect to (leaf, expected gradient)."""
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for leaf, wanted in leaves:
        np.testing.assert_allclose(
            array(leaf.grad), wanted, rtol=1e-3, atol=1e-5 * abs(wanted).max()
        )


def energy_gap(f, f0, t):
    difference = f @ t.T - f0 @ t.T
    value = (difference**2).sum(1).mean() / (2 * len(t))
    return value, difference @ t / (len(f) * len(t))


def divergence(f, f0, t, t0, keep=1.0):
    """KL(p0 ‖ p) over the texts that are kept, and its gradients by f and t."""
    z, z0 = (np.where(keep, a @ b.T, -1e8) for a, b in ((f, t), (f0, t0)))
    p, p0 = softmax(z), softmax(z0)
    some = np.where(p0 > 0, p0, 1.0)
    value = (p0 * (np.log(some) - np.log(np.where(p0 > 0, p, 1.0)))).sum(1).mean()
    slope = np.where(keep, p - p0, 0.0) / len(f)
    return value, slope @ t, slope.T @ f


def contrastive(f, g, s):
    """FLYP's loss with diagonal targets, and its gradients by f, g and s."""
    z, count = s * f @ g.T, len(f)
    rows, columns = softmax(z), softmax(z.T).T
    value = -(np.log(rows).trace() + np.log(columns).trace()) / (2 * count)
    slope = (rows + columns - 2 * np.eye(count)) / (2 * count)
    return value, s * slope @ g, s * slope.T @ f, (slope * (f @ g.T)).sum()


@pytest.fixture(scope="module")
def clip():
    from robustft.models import load_clip

    torch.manual_seed(1)
    return load_clip("robustft-tiny")


PENALTIES = [
    ("car-ft", "context_kl"),
    ("lipsum-ft", "energy_gap"),
    ("starft", "spurious_kl"),
    ("snd", "distance"),
    ("flyp-snd", "distance"),
]
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


@pytest.mark.parametrize("name", ["car-ft", "lipsum-ft"])
def test_losses_that_compare_logits_with_many_texts(name):
    torch.manual_seed(4)
    logits, f = torch.randn(B, C, requires_grad=True), rows(B).requires_grad_()
    f0, texts = rows(B), rows(9, length=7.0)
    label = torch.tensor([0, 1, 1, 2, 3, 0])
    weight = {"car-ft": {"alpha": 0.7}, "lipsum-ft": {"lambda_": 0.7}}[name]
    method = make_method(name, **weight)
    batch = {"image": torch.zeros(B), "label": label}
    loss, values = method.loss(Given(logits, f, f0, texts), batch)
    ce, ce_slope = cross_entropy(array(logits), label.numpy())
    if name == "lipsum-ft":
        gap, slope = energy_gap(array(f), array(f0), array(texts))
        assert values["energy_gap"].item() == pytest.approx(gap, rel=1e-5)
    else:
        gap, slope, _ = divergence(*map(array, (f, f0, texts, texts)))
        assert values["context_kl"].item() == pytest.approx(gap, rel=1e-5)
    check(loss, ce + 0.7 * gap, (logits, ce_slope), (f, 0.7 * slope))


def test_contexts_are_the_templates_means_over_the_classes(clip):
    _, module = moved(clip, "car-ft")
    text = [[template.format(name) for name in NAMES] for template in TEMPLATES]
    with torch.no_grad():
        raw = [array(clip.model.encode_text(clip.tokenizer(row))) for row in text]
    means = [(g / np.linalg.norm(g, axis=1, keepdims=True)).mean(0) for g in raw]
    expected = [clip.logit_scale * w / np.linalg.norm(w) for w in means]
    np.testing.assert_allclose(array(module.contexts), np.stack(expected), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="templates: got 1, expected at least two for car-ft"):
        make_method("car-ft").setup(clip, NAMES, TEMPLATES[:1])


def test_random_texts_are_rows_of_tokens_between_start_and_end(clip):
    tokens = Tokens(clip, method="x")
    torch.manual_seed(5)
    first, second = tokens.random(300, 8), tokens.random(300, 8)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(tokens.random(300, 8), first)
    assert first.shape == clip.tokenizer(["a"] * 300).shape
    assert (first[:, 0] == tokens.start).all()
    assert (first[:, 9] == tokens.end).all()
    assert (first[:, 10:] == 0).all()
    drawn = first[:, 1:9]
    assert int(drawn.min()) < 20
    assert tokens.start - 20 < int(drawn.max()) < tokens.start
    with pytest.raises(InputError, match="length: got 23, expected at most 22"):
        make_method("lipsum-ft", length=23).setup(clip, NAMES, TEMPLATES)


def test_random_texts_need_a_tokenizer_with_start_and_end(clip):
    other = dataclasses.replace(clip, tokenizer=lambda texts: torch.ones(len(texts), 8).long())
    with pytest.raises(InputError, match="model: robustft-tiny has no byte-pair tokenizer"):
        make_method("lipsum-ft").setup(other, NAMES, TEMPLATES)


@pytest.mark.parametrize("mask", [True, False])
def test_starft_is_flyp_and_the_divergence_over_other_classes(mask):
    torch.manual_seed(9)
    f, g, t = (rows(B, length=r).requires_grad_() for r in (1, 1, 7))
    f0, t0, scale = rows(B), rows(B, length=7.0), torch.tensor(9.0, requires_grad=True)
    label = torch.tensor([0, 1, 1, 2, 3, 0])
    given = Given(f, g, scale, f0, t, t0)
    given.share = 0.6
    method = make_method("starft", rho=0.5, mask=mask)
    batch = {"image": torch.zeros(B), "text": torch.zeros(B), "label": label}
    loss, values = method.loss(given, batch)
    target, tf, tg, ts = contrastive(array(f), array(g), 9.0)
    other = (label[:, None] != label).numpy() if mask else True
    kl, kf, kt = divergence(*map(array, (f, f0, t, t0)), keep=other)
    assert values["spurious_kl"].item() == pytest.approx(kl, rel=1e-5)
    slopes = [(f, tf + 0.3 * kf), (g, tg), (t, 0.3 * kt), (scale, ts)]
    check(loss, target + 0.3 * kl, *slopes)


def test_for_starft_a_batch_of_one_class_has_no_divergence():
    torch.manual_seed(9)
    given = Given(rows(4), rows(4), torch.tensor(9.0), rows(4), rows(4, length=7.0), rows(4))
    given.share = 1.0
    batch = {"image": torch.zeros(4), "text": torch.zeros(4), "label": torch.ones(4).long()}
    assert make_method("starft").loss(given, batch)[1]["spurious_kl"] == 0


def test_replay_adds_the_contrastive_loss_of_the_reference_pairs():
    torch.manual_seed(6)
    f, g, rf, rg = (rows(n).requires_grad_() for n in (B, B, 5, 5))
    scale = torch.tensor(9.0, requires_grad=True)
    method = make_method("flyp-replay", lambda_=0.3)
    keys = ("image", "text", "label", "ref_image", "ref_text")
    batch = {key: torch.zeros(B) for key in keys}
    loss, values = method.loss(Given(f, g, scale, rf, rg), batch)
    target, tf, tg, ts = contrastive(array(f), array(g), 9.0)
    replay, pf, pg, ps = contrastive(array(rf), array(rg), 9.0)
    assert values["replay"].item() == pytest.approx(replay, rel=1e-5)
    slopes = [(f, tf), (g, tg), (rf, 0.3 * pf), (rg, 0.3 * pg), (scale, ts + 0.3 * ps)]
    check(loss, target + 0.3 * replay, *slopes)


def test_snd_adds_the_mean_length_of_the_image_difference_vectors():
    torch.manual_seed(7)
    logits, u = torch.randn(B, C, requires_grad=True), torch.randn(5, D, requires_grad=True)
    label = torch.tensor([0, 1, 1, 2, 3, 0])
    batch = {"image": torch.zeros(B), "label": label, "ref_image": torch.zeros(5)}
    loss, values = make_method("snd").loss(Given(logits, u), batch)
    ce, slope = cross_entropy(array(logits), label.numpy())
    w = 1 / (1 + np.exp(1.2))
    weight = 9 * w + 0.5 * (1 - w)
    length = np.sqrt((array(u) ** 2).sum(1, keepdims=True))
    assert values["distance"].item() == pytest.approx(length.mean(), rel=1e-5)
    slopes = [(logits, slope), (u, weight * array(u) / length / 5)]
    check(loss, ce + weight * length.mean(), *slopes)


def test_flyp_snd_adds_the_mean_squared_length():
    torch.manual_seed(8)
    f, g = (rows(B).requires_grad_() for _ in range(2))
    scale, u = torch.tensor(9.0, requires_grad=True), torch.randn(5, D, requires_grad=True)
    batch = {key: torch.zeros(B) for key in ("image", "text", "label", "ref_image")}
    loss, _ = make_method("flyp-snd", lambda_=0.2).loss(Given(f, g, scale, u), batch)
    target, tf, tg, ts = contrastive(array(f), array(g), 9.0)
    expected = target + 0.2 * (array(u) ** 2).sum(1).mean()
    check(loss, expected, (f, tf), (g, tg), (scale, ts), (u, 0.2 * 2 * array(u) / 5))


@pytest.mark.parametrize("name", ["snd", "flyp-snd"])
@pytest.mark.parametrize("cached", [True, False])
def test_difference_vectors_are_those_of_the_unit_features(clip, name, cached):
    _, module = moved(clip, name)
    batch = batch_of(clip)
    with torch.no_grad():
        before = clip.model.encode_image(batch["ref_image"])
    inner = module.model if name == "flyp-snd" else module.classifier.clip
    target = {"image": batch["image"]} | ({"text": batch["text"]} if name == "flyp-snd" else {})
    known = before if cached else None
    *_, u = module(**target, ref_image=batch["ref_image"], ref_before=known)
    with torch.no_grad():
        now = inner.eval().encode_image(batch["ref_image"])
    now, before = (
        array(z) / np.linalg.norm(array(z), axis=1, keepdims=True) for z in (now, before)
    )
    np.testing.assert_allclose(array(u), now - before, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), PENALTIES)
def test_the_penalty_of_the_model_before_training_is_zero(clip, name, value):
    method = make_method(name)
    module = method.setup(clip, NAMES, TEMPLATES).eval()
    _, values = method.loss(module, batch_of(clip))
    assert values[value].item() == pytest.approx(0.0, abs=1e-5)
    method, module = moved(clip, name)
    assert method.loss(module, batch_of(clip))[1][value] > 1e-4


@pytest.mark.parametrize(
    ("name", "options", "base"),
    [
        ("l2-sp", {"alpha": 0.0, "beta": 0.0}, "ft"),
        ("car-ft", {"alpha": 0.0}, "ft"),
        ("lipsum-ft", {"lambda_": 0.0}, "ft"),
        ("snd", {"lambda_": 0.0}, "ft"),
        ("flyp-snd", {"lambda_": 0.0}, "flyp"),
        ("flyp-replay", {"lambda_": 0.0}, "flyp"),
        ("starft", {"rho": 0.0}, "flyp"),
    ],
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

"""Each method's loss against its formula, written out in float64."""

import pytest
import torch
from torch.nn import functional as F

from robustft.methods import make_method


@pytest.fixture(scope="module")
def setting():
    from robustft.models import load_clip

    torch.manual_seed(1)
    clip = load_clip("robustft-tiny")
    names, templates = ["one", "two", "three", "four"], ["a photo of a {}.", "the {}."]
    label = torch.tensor([0, 1, 1, 2, 3, 0, 1])
    batch = {
        "image": torch.randn(7, 3, 24, 24),
        "label": label,
        "text": clip.tokenizer([templates[0].format(names[i]) for i in label]),
        "ref_image": torch.randn(5, 3, 24, 24),
        "ref_text": clip.tokenizer([f"a red letter {c}" for c in "abcde"]),
    }
    with torch.no_grad():
        batch["ref_image_pretrained"] = clip.model.encode_image(batch["ref_image"])
        batch["ref_text_pretrained"] = clip.model.encode_text(batch["ref_text"])
    return clip, names, templates, batch


def made(setting, name, **options):
    clip, names, templates, batch = setting
    method = make_method(name, **options)
    module = method.setup(clip, names, templates)
    method.begin_stage(module, 0)
    return method, module, batch


def similarities(clip, batch):
    with torch.no_grad():
        image = F.normalize(clip.model.encode_image(batch["image"]).double(), dim=-1)
        text = F.normalize(clip.model.encode_text(batch["text"]).double(), dim=-1)
    return image @ text.T


def symmetric(logits, targets):
    def one(z, t):
        return -(t * z.log_softmax(1)).sum(1).mean()

    return 0.5 * (one(logits, targets) + one(logits.T, targets))


def test_flyp_with_diagonal_and_with_label_positives(setting):
    clip, _, _, batch = setting
    logits = clip.logit_scale * similarities(clip, batch)
    same = (batch["label"][:, None] == batch["label"]).double()
    targets = {"diagonal": torch.eye(7).double(), "label": same / same.sum(1, keepdim=True)}
    for positives, target in targets.items():
        method, module, _ = made(setting, "flyp", positives=positives)
        loss, _ = method.loss(module, batch)
        expected = symmetric(logits, target)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_r_adapter_before_any_step_is_mpm_nce_of_the_pretrained_model(setting):
    clip, _, _, batch = setting
    similarity = similarities(clip, batch)
    same = (batch["label"][:, None] == batch["label"]).double()
    positives = same.sum(1, keepdim=True)
    target = 0.98 * same / positives + 0.02 * (1 - same) / (7 - positives)
    logits = clip.logit_scale * (similarity + 0.05 * (1 - same))
    method, module, _ = made(setting, "r-adapter")
    method.train_mode(module)
    loss, _ = method.loss(module, batch)
    assert loss.item() == pytest.approx(symmetric(logits, target).item(), rel=1e-5)
    method, module, _ = made(setting, "r-adapter", loss="infonce")
    expected = symmetric(clip.logit_scale * similarity, torch.eye(7).double())
    assert method.loss(module, batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained
    assert all("r_adapter" in name for name in trained)


@pytest.mark.parametrize("normalize", [True, False])
def test_dive_after_a_move_of_the_weights(setting, normalize):
    clip, _, _, batch = setting
    method, module, _ = made(setting, "dive", normalize=normalize, lambda_=3.0, momentum=0.9)
    method.train_mode(module)
    first, values = method.loss(module, batch)
    assert values["avl"].item() == pytest.approx(0, abs=1e-9)
    assert first.item() == pytest.approx(values["contrastive"].item())

    torch.manual_seed(3)
    with torch.no_grad():
        for p in module.model.parameters():
            p.add_(0.02 * torch.randn_like(p))
        f = module.model.encode_image(batch["ref_image"]).double()
        g = module.model.encode_text(batch["ref_text"]).double()
    f0, g0 = (batch[f"ref_{k}_pretrained"].double() for k in ("image", "text"))
    if normalize:
        f, g, f0, g0 = (F.normalize(x, dim=-1) for x in (f, g, f0, g0))
    u, v = f - f0, g - g0
    mean = 0.1 * torch.cat([u, v]).mean(0)  # the first batch's mean was zero
    average = ((u - mean).square().sum(1) + (v - mean).square().sum(1)).mean()
    pairwise = (u - v).square().sum(1).mean()
    loss, values = method.loss(module, batch)
    assert values["avl"].item() == pytest.approx(average.item(), rel=1e-4)
    assert values["pvl"].item() == pytest.approx(pairwise.item(), rel=1e-4)
    expected = values["contrastive"] + 3.0 * (average + pairwise)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert clip.model is not module.model


def test_r_adapter_moving_average_follows_each_step(setting):
    method, module, _ = made(setting, "r-adapter", ema=0.75, rank=2)
    adapter = next(iter(module.adapters.adapters.values()))
    start = {n: adapter.get_buffer(f"ema_{n}").clone() for n in (*adapter.factors, "scale")}
    with torch.no_grad():
        for p in module.adapters.parameters():
            p.add_(1.0)
    method.after_step(module)
    method.after_step(module)
    for name, before in start.items():
        live = getattr(adapter, name)
        expected = 0.75**2 * before + (1 - 0.75**2) * live
        torch.testing.assert_close(adapter.get_buffer(f"ema_{name}"), expected)


def test_result_has_a_head_from_its_own_text_tower(setting):
    clip, names, templates, _ = setting
    method, module, _ = made(setting, "flyp")
    with torch.no_grad():
        module.model.text_projection.mul_(-1.0)
        module.model.logit_scale.fill_(2.0)
    head = method.classifier(module).head
    original = make_method("zero-shot").setup(clip, names, templates).classifier.head
    ratio = torch.tensor(2.0).exp() / clip.logit_scale
    torch.testing.assert_close(head.weight, -ratio * original.weight, rtol=1e-4, atol=1e-5)

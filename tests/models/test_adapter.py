"""R-Adapter: the identities of the method, on every kind of model it fits."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from torch import nn

from robustft.errors import InputError
from robustft.models import (
    Adapter,
    AdapterConfig,
    adapters_of,
    add_adapters,
    interpolate,
    merged_state_dict,
    plain_state_dict,
)


@torch.no_grad()
def outputs(model, images, texts):
    return torch.cat([model.encode_image(images), model.encode_text(texts)])


@torch.no_grad()
def disturb(adapters, seed=5, shadow=True):
    """Random live weights, and a shadow that differs from them."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in adapters.state_dict().items():
        if shadow or ".ema_" not in name:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.add_((0.2 * noise).to(tensor))


def snapshot(model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    return state, [p.requires_grad for p in model.parameters()]


def assert_unchanged(model, before):
    state, flags = before
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert adapters_of(model) is None
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("rank", [None, 3])
def test_starts_as_the_pretrained_model_bit_for_bit(model, images, texts, rank):
    # torch may take another matmul kernel, with other last bits, for weights that need gradients.
    model.requires_grad_(False)
    before = outputs(model, images, texts)
    adapters = add_adapters(model, rank=rank)
    assert torch.equal(outputs(model, images, texts), before)
    with adapters.live():
        assert torch.equal(outputs(model, images, texts), before)
    # In training too, whatever is dropped: the pre-trained branch always survives.
    for module in model.modules():
        if isinstance(module, Adapter):
            module.train()
    assert torch.equal(outputs(model, images, texts), before)


@pytest.mark.parametrize("alpha", [0.0, 0.37, 0.5, 1.0, 1.3])
@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"rank": 3, "ema_of": "product"}])
def test_merged_model_equals_adapted_model(model, images, texts, options, alpha):
    model = model.double()
    plain = copy.deepcopy(model)
    untouched = outputs(plain, images.double(), texts)
    adapters = add_adapters(model, **options)
    for adapter in adapters.adapters.values():
        adapter.double()
    disturb(adapters)
    adapters.alpha = alpha
    adapted = outputs(model, images.double(), texts)
    state = merged_state_dict(model, adapters, alpha)
    plain.load_state_dict(state, strict=True)
    merged = outputs(plain, images.double(), texts)
    torch.testing.assert_close(merged, adapted, rtol=1e-11, atol=1e-12)
    if alpha == 0.0:
        assert torch.equal(merged, untouched)
    else:  # the adapters do something, in every output
        assert ((merged - untouched).abs().amax(dim=1) > 1e-3).all()


def test_merged_model_equals_adapted_model_in_float32(model, images, texts):
    plain = copy.deepcopy(model)
    adapters = add_adapters(model)
    disturb(adapters)
    plain.load_state_dict(merged_state_dict(model, adapters))
    torch.testing.assert_close(
        outputs(plain, images, texts), outputs(model, images, texts), rtol=2e-5, atol=2e-5
    )


def test_merge_folds_the_formula_into_weight_and_bias(plain):
    adapters = add_adapters(plain, rank=3)
    disturb(adapters)
    alpha, name = 0.7, "visual.transformer.resblocks.1.mlp"
    shadow = {k.removeprefix(f"{name}.ema_"): v.double() for k, v in adapters.state_dict().items()}
    w_adp = (shadow["scale"] * shadow["up"] @ shadow["down"]).T  # rows are tokens: Y -> Y W_adp
    linear = plain.visual.transformer.resblocks[1].mlp.c_proj
    factor = torch.eye(24).double() + alpha * w_adp
    state = merged_state_dict(plain, adapters, alpha)
    weight = (linear.weight.double().T @ factor).T
    bias = linear.bias.double() @ factor
    got = state[f"{name}.c_proj.weight"], state[f"{name}.c_proj.bias"]
    torch.testing.assert_close(got[0].double(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[1].double(), bias, rtol=1e-5, atol=1e-6)
    changed = {k for k, v in plain_state_dict(plain).items() if not torch.equal(v, state[k])}
    assert len(changed) == 2 * 2 * 5  # weight and bias, attention and MLP, five blocks
    assert all("out_proj" in k or "c_proj" in k for k in changed)


def test_merged_at_alpha_interpolates_between_original_and_merged(model):
    adapters = add_adapters(model)
    disturb(adapters)
    original = merged_state_dict(model, adapters, 0.0)
    assert all(torch.equal(v, original[k]) for k, v in plain_state_dict(model).items())
    for alpha in (0.2, 0.5, 0.8):
        wise = interpolate(original, merged_state_dict(model, adapters, 1.0), alpha)
        merged = merged_state_dict(model, adapters, alpha)
        assert wise.keys() == merged.keys()
        for name in merged:
            torch.testing.assert_close(merged[name], wise[name], rtol=1e-5, atol=1e-6)


def test_ema_follows_its_recurrence_and_only_evaluation_uses_it(plain, images, texts):
    m = 0.9
    adapters = add_adapters(plain, ema=m, drop=0.0)
    adapters.alpha = 1.0
    before = outputs(plain, images, texts)
    expected = {k: v.double() for k, v in adapters.state_dict().items() if ".ema_" in k}
    for seed in (1, 2, 3):
        disturb(adapters, seed, shadow=False)
        adapters.update_ema()
        live = adapters.state_dict()
        for name in expected:
            new = live[name.replace(".ema_", ".")].double()
            expected[name] = m * expected[name] + (1 - m) * new
    for name, tensor in expected.items():
        torch.testing.assert_close(adapters.state_dict()[name].double(), tensor)
    evaluated = outputs(plain, images, texts)
    trained = outputs(plain.train(), images, texts)
    with adapters.live():
        live = outputs(plain.eval(), images, texts)
    torch.testing.assert_close(trained, live)
    assert not torch.allclose(evaluated, live, atol=1e-3)
    assert not torch.allclose(evaluated, before, atol=1e-3)
    assert torch.equal(outputs(plain, images, texts), evaluated)


def test_ema_of_zero_is_the_live_model(plain, images, texts):
    adapters = add_adapters(plain, ema=0.0, rank=2)
    disturb(adapters, shadow=False)
    adapters.update_ema()
    for name, tensor in adapters.state_dict().items():
        if ".ema_" in name:
            assert torch.equal(tensor, adapters.state_dict()[name.replace(".ema_", ".")])


def test_ema_of_product_averages_the_product(plain):
    adapters = add_adapters(plain, ema=0.8, ema_of="product", rank=2)
    name = "transformer.resblocks.0.attn"
    adapter = adapters.adapters[name]
    expected = torch.zeros(16, 16, dtype=torch.float64)
    for seed in (1, 2):
        disturb(adapters, seed, shadow=False)
        adapters.update_ema()
        product = adapter.scale.double() * adapter.up.double() @ adapter.down.double()
        expected = 0.8 * expected + 0.2 * product
    torch.testing.assert_close(adapter.ema_product.double(), expected.detach())


def test_low_rank_exactly_when_below_the_width(plain):
    adapters = add_adapters(plain, rank=16)  # text width 16, image width 24
    for name, adapter in adapters.adapters.items():
        shapes = {k: tuple(p.shape) for k, p in adapter.named_parameters()}
        if name.startswith("visual"):
            assert shapes == {"down": (16, 24), "up": (24, 16), "scale": ()}
            bound = (6 / (16 + 24)) ** 0.5
            assert 0.5 * bound < adapter.down.abs().max() <= bound
            assert not adapter.up.any()
        else:
            assert shapes == {"weight": (16, 16), "scale": ()}
            assert not adapter.weight.any()
    assert adapters.num_parameters == 4 * (2 * 16 * 24 + 1) + 6 * (16 * 16 + 1)


def test_ranks_by_tower_and_one_tower_alone(plain, images, texts):
    adapters = add_adapters(plain, rank=3, text_rank=2, towers=("text",))
    assert [s.tower for s in adapters.sites] == ["text"] * 6
    assert {a.down.shape[0] for a in adapters.adapters.values()} == {2}
    before = plain.encode_image(images)
    disturb(adapters)
    assert torch.equal(plain.encode_image(images), before)


def test_only_adapters_train_and_every_parameter_gets_a_gradient(model, images, texts):
    adapters = add_adapters(model, rank=3, drop=0.0)
    disturb(adapters)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if ".r_adapter." in n}
    model.train()
    (model.encode_image(images).square().sum() + model.encode_text(texts).square().sum()).backward()
    for name, parameter in adapters.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_scale_option_and_parameter_groups(plain):
    adapters = add_adapters(plain, scale=1.0, learn_scale=False)
    assert adapters.num_parameters == 2 * 2 * 24**2 + 2 * 3 * 16**2
    groups = adapters.param_groups(0.3)
    assert [g["weight_decay"] for g in groups] == [0.3]
    adapters.remove()
    adapters = add_adapters(plain)
    matrices, scalars = adapters.param_groups(0.3)
    assert (matrices["weight_decay"], scalars["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in scalars["params"]} == {0}
    assert all(p.item() == pytest.approx(0.1) for p in scalars["params"])
    assert len(matrices["params"]) == len(scalars["params"]) == 10
    adapters.update_ema()


@pytest.mark.parametrize("batch_dim", [0, 1])
@pytest.mark.parametrize("mode", ["sample", "module", "token"])
def test_dropping_has_its_granularity_and_its_mean(mode, batch_dim):
    batch, tokens, width, p = 6, 4, 3, 0.3
    adapter = Adapter(width, None, AdapterConfig(drop=p, drop_mode=mode), batch_dim)
    with torch.no_grad():
        adapter.weight.copy_(torch.eye(width))
    y = torch.ones(batch, tokens, width) if batch_dim == 0 else torch.ones(tokens, batch, width)
    torch.manual_seed(0)
    seen = []
    for _ in range(4000):
        gate = (adapter(y) - y).detach() / 0.1  # each entry 0 or 1/(1-p)
        gate = gate if batch_dim == 0 else gate.transpose(0, 1)
        seen.append(gate)
    gates = torch.stack(seen)  # [draws, batch, tokens, width]
    on = torch.isclose(gates, torch.tensor(1 / (1 - p)), rtol=1e-4)
    assert (on | (gates.abs() < 1e-6)).all()
    assert gates.mean() == pytest.approx(1.0, abs=0.05)
    shared_in_sample = (on == on[:, :, :1, :1]).all()
    shared_in_token = (on == on[:, :1, :, :1]).all()
    assert (bool(shared_in_sample), bool(shared_in_token)) == {
        "sample": (True, False), "token": (False, True), "module": (True, True),
    }[mode]  # fmt: skip


def test_expected_output_under_dropping_is_the_output_without():
    adapter = Adapter(8, 3, AdapterConfig(drop=0.4), 0)
    with torch.no_grad():
        adapter.up.normal_(generator=torch.Generator().manual_seed(0))
    y = torch.randn(20000, 1, 8, generator=torch.Generator().manual_seed(1))
    y = y[:1].expand_as(y)
    torch.manual_seed(2)
    with torch.no_grad():
        mean = adapter(y).mean(dim=0)
        adapter.eval().use_ema = False
        adapter.alpha = 1.0
        torch.testing.assert_close(mean, adapter(y[:1])[0], atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kind", ["plain", "tokens-first", "timm"])
def test_samples_are_dropped_along_the_batch_in_the_model(make, texts, images, kind):
    """With p near 1 and few samples, most samples must come out exactly pre-trained."""
    model = make(kind)
    frozen = copy.deepcopy(model)
    adapters = add_adapters(model, drop=0.9)
    disturb(adapters)
    for adapter in adapters.adapters.values():
        adapter.train()
    texts, images = texts[:1].repeat(64, 1), images[:1].repeat(64, 1, 1, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        for got, was in (
            (model.encode_text(texts), frozen.encode_text(texts)),
            (model.encode_image(images), frozen.encode_image(images)),
        ):
            same = torch.isclose(got, was, atol=1e-5).all(dim=1)
            assert 0 < same.sum() < 64  # 0.9^6 or 0.9^4 of them


def test_dropping_repeats_with_the_generator_state(plain, images):
    adapters = add_adapters(plain, drop=0.5)
    disturb(adapters)
    plain.train()
    state = torch.get_rng_state()
    first, second = plain.encode_image(images), plain.encode_image(images)
    torch.set_rng_state(state)
    assert torch.equal(plain.encode_image(images), first)
    assert not torch.equal(first, second)
    plain.eval()
    state = torch.get_rng_state()
    plain.encode_image(images)
    assert torch.equal(torch.get_rng_state(), state)  # evaluation draws nothing


def test_deep_copy_has_adapters_of_its_own(model, images, texts):
    adapters = add_adapters(model, rank=3)
    disturb(adapters)
    twin = copy.deepcopy(model)
    before = outputs(model, images, texts)
    assert torch.equal(outputs(twin, images, texts), before)
    others = adapters_of(twin)
    assert others is not adapters
    assert others.model is twin
    disturb(others, seed=9)
    assert not torch.allclose(outputs(twin, images, texts), before, atol=1e-3)
    assert torch.equal(outputs(model, images, texts), before)
    others.remove()
    assert not any(m._forward_hooks for m in twin.modules())
    assert torch.equal(outputs(model, images, texts), before)
    twin.load_state_dict(plain_state_dict(model), strict=True)


def test_remove_gives_the_model_back(model, images, texts):
    first = next(iter(model.parameters()))
    first.requires_grad_(False)
    before, out = snapshot(model), outputs(model, images, texts)
    adapters = add_adapters(model)
    disturb(adapters)
    adapters.remove()
    assert_unchanged(model, before)
    assert torch.equal(outputs(model, images, texts), out)
    add_adapters(model)


@pytest.mark.parametrize("kind", ["plain", "timm", "custom-block"])
def test_torch_compile_agrees_with_eager(make, images, texts, kind):
    model = make(kind)
    adapters = add_adapters(model, rank=3, drop=0.0)
    disturb(adapters)
    expected = outputs(model, images, texts)
    image = torch.compile(model.encode_image, backend="aot_eager", fullgraph=True)
    text = torch.compile(model.encode_text, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        got = torch.cat([image(images), text(texts)])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    model.train()  # other weights: the live ones
    if kind == "timm":  # its stochastic depth draws at random in training
        return
    loss = image(images).square().sum()
    loss.backward()
    compiled = [p.grad.clone() for p in adapters.parameters() if p.grad is not None]
    model.zero_grad()
    model.encode_image(images).square().sum().backward()
    eager = [p.grad for p in adapters.parameters() if p.grad is not None]
    assert len(compiled) == len(eager) > 0
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_model_and_autocast(images, texts, plain):
    adapters = add_adapters(plain)
    disturb(adapters)
    exact = outputs(plain, images, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        amp = outputs(plain, images, texts)
    torch.testing.assert_close(amp.float(), exact, rtol=0.1, atol=0.1)
    low = copy.deepcopy(plain)
    open_clip.model.convert_weights_to_lp(low, torch.bfloat16)
    assert {p.dtype for p in adapters_of(low).parameters()} == {torch.float32}
    with torch.no_grad():
        text = low.encode_text(texts)
        assert text.dtype == torch.bfloat16
        torch.testing.assert_close(text.float(), exact[5:], rtol=0.1, atol=0.15)
    merged = merged_state_dict(low, adapters_of(low), 0.5)
    assert merged["transformer.resblocks.0.mlp.c_proj.weight"].dtype == torch.bfloat16


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)))
        self.transformer = nn.Sequential(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: got 0, expected at least 1"),
        ({"text_rank": -2}, "text_rank: got -2"),
        ({"rank": 2.5}, "rank: got 2.5, expected an integer"),
        ({"drop": 1.0}, r"drop: got 1.0, expected a number in \[0, 1\)"),
        ({"drop": -0.1}, "drop: got -0.1"),
        ({"ema": 1.0}, "ema: got 1.0"),
        ({"ema": float("nan")}, "ema: got nan"),
        ({"scale": 0.0}, "scale: got 0.0"),
        ({"scale": float("inf")}, "scale: got inf"),
        ({"drop_mode": "batch"}, "drop_mode: got 'batch'"),
        ({"ema_of": "sum"}, "ema_of: got 'sum'"),
        ({"towers": ()}, "towers: got"),
        ({"towers": ("audio",)}, "towers: got"),
    ],
)
def test_bad_arguments_are_refused_before_any_change(plain, options, message):
    before = snapshot(plain)
    with pytest.raises(InputError, match=message):
        add_adapters(plain, **options)
    assert_unchanged(plain, before)


def test_models_that_cannot_be_adapted_are_refused_before_any_change(plain):
    resnet = open_clip.CLIP(
        12, {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}, {**dict(TEXT_SMALL)}
    )
    before = snapshot(resnet)
    with pytest.raises(InputError, match=r"image tower \(ModifiedResNet\).*4 x Bottleneck"):
        add_adapters(resnet)
    assert_unchanged(resnet, before)
    assert len(add_adapters(resnet, towers=("text",)).adapters) == 2
    with pytest.raises(InputError, match="image tower"):
        add_adapters(ConvNet())
    with pytest.raises(InputError, match="Linear has no image tower"):
        add_adapters(nn.Linear(2, 2))
    with pytest.raises(InputError, match="expected an open_clip model"):
        add_adapters("ViT-B-32")
    plain.transformer.resblocks[1].mlp.c_proj = nn.Identity()
    before = snapshot(plain)
    with pytest.raises(InputError, match=r"resblocks\.1\.mlp.*ends in no linear layer"):
        add_adapters(plain)
    assert_unchanged(plain, before)


TEXT_SMALL = {"context_length": 7, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}


def test_adapters_twice_are_refused(plain, images, texts):
    adapters = add_adapters(plain)
    disturb(adapters)
    out = outputs(plain, images, texts)
    with pytest.raises(InputError, match="has adapters already"):
        add_adapters(plain, rank=2)
    assert torch.equal(outputs(plain, images, texts), out)
    assert adapters_of(plain) is adapters


def test_merge_refuses_adapters_of_another_model(plain, make):
    adapters = add_adapters(plain)
    with pytest.raises(InputError, match="belong to another model"):
        merged_state_dict(make("plain"), adapters)
    with pytest.raises(InputError, match="alpha: got nan"):
        merged_state_dict(plain, adapters, float("nan"))
    with pytest.raises(InputError, match="alpha"):
        adapters.alpha = float("inf")


def test_real_vit_b_32_is_adapted_merged_and_evaluated():
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()
    images, texts = torch.randn(2, 3, 224, 224), open_clip.get_tokenizer("ViT-B-32")(["a dog", "x"])
    model.requires_grad_(False)
    before = outputs(model, images, texts)
    adapters = add_adapters(model)
    assert adapters.num_parameters == 12 * 2 * 768**2 + 12 * 2 * 512**2 + 48
    assert torch.equal(outputs(model, images, texts), before)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            d = adapter.width
            adapter.ema_weight.copy_(torch.randn(d, d, generator=generator) / d**0.5)
            adapter.ema_scale.fill_(0.3)
    adapters.alpha = 0.5
    adapted = outputs(model, images, texts)
    state = merged_state_dict(model, adapters, 0.5)
    adapters.remove()
    model.load_state_dict(state, strict=True)
    merged = outputs(model, images, texts)
    assert (merged - adapted).norm() < 1e-5 * adapted.norm()
    assert (merged - before).norm() > 1e-2 * before.norm()

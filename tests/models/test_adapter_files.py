"""Saving adapters, and loading them into the right model or none."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustft.errors import InputError
from robustft.models import adapters_of, add_adapters, load_adapters, save_adapters


@pytest.fixture
def saved(plain, tmp_path):
    """(a plain model, its adapted twin, the folder of its adapters)."""
    adapted = copy.deepcopy(plain)
    adapters = add_adapters(
        adapted, image_rank=3, drop=0.4, drop_mode="token", ema=0.9, scale=0.2, ema_of="factors"
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in adapters.state_dict().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    adapters.alpha = 0.8
    folder = tmp_path / "run" / "adapters"
    save_adapters(adapters, folder)
    return plain, adapted, folder


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}, [
        p.requires_grad for p in model.parameters()
    ]


def assert_refused(folder, model, message, error=InputError):
    state, flags = state_of(model)
    with pytest.raises(error, match=message):
        load_adapters(folder, model)
    assert adapters_of(model) is None
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags


def test_loaded_adapters_are_the_saved_ones(saved, images, texts):
    model, adapted, folder = saved
    assert sorted(p.name for p in folder.iterdir()) == ["adapters.json", "adapters.safetensors"]
    adapters = load_adapters(folder, model)
    original = adapters_of(adapted)
    assert adapters.config == original.config
    assert adapters.alpha == 0.8
    assert adapters.state_dict().keys() == original.state_dict().keys()
    for name, tensor in original.state_dict().items():
        assert torch.equal(adapters.state_dict()[name], tensor)
    with torch.no_grad():
        for mode in (True, False):
            for m in (model, adapted):
                m.train(mode)
            torch.manual_seed(1)
            got = model.encode_image(images), model.encode_text(texts)
            torch.manual_seed(1)
            want = adapted.encode_image(images), adapted.encode_text(texts)
            assert torch.equal(got[0], want[0])
            assert torch.equal(got[1], want[1])


def test_adapters_alone_are_small(saved):
    _, adapted, folder = saved
    adapters = adapters_of(adapted)
    names = load_file(folder / "adapters.safetensors")
    assert all(".attn." in name or ".mlp." in name for name in names)
    assert sum(t.numel() for t in names.values()) == 2 * adapters.num_parameters  # and the shadow


def test_saving_again_replaces_and_other_files_are_safe(saved):
    _, adapted, folder = saved
    adapters = adapters_of(adapted)
    with torch.no_grad():
        next(adapters.parameters()).fill_(3.0)
    save_adapters(adapters, folder)
    assert any((t == 3.0).all() for t in load_file(folder / "adapters.safetensors").values())
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes\.txt'"):
        save_adapters(adapters, folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_another_models_adapters_are_refused(saved, make):
    _, _, folder = saved
    other = make("timm")
    assert_refused(
        folder,
        other,
        r"made for another model: at visual\.tr.*the width is 24 in the file, none in",
    )
    # The same blocks, but other tensors around them.
    other = make("plain")
    other.visual.proj = torch.nn.Parameter(torch.zeros(24, 9))
    assert_refused(folder, other, "same blocks, but other tensors")


def test_damaged_files_are_refused(saved, make):
    model, _, folder = saved
    weights, description = folder / "adapters.safetensors", folder / "adapters.json"
    whole = weights.read_bytes()
    tensors = {k: v.clone() for k, v in load_file(weights).items()}  # the file is mapped
    weights.write_bytes(whole[: len(whole) // 2])
    assert_refused(folder, model, "not a whole safetensors file")
    name = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    assert_refused(folder, model, f"does not match adapters.json.*{name} is missing")
    save_file({**tensors, name: torch.zeros(2, 2)}, weights)
    assert_refused(folder, model, f"{name} has shape")
    weights.unlink()
    assert_refused(folder, model, "adapters.safetensors", FileNotFoundError)
    weights.write_bytes(whole)

    text = description.read_text()
    for bad, message in (
        ("not json", "not a description of adapters"),
        ("[]", "not a description of adapters"),
        (text.replace('"format": 1', '"format": 99'), "format 99, expected 1"),
        (text.replace('"drop"', '"dorp"'), "not a description of adapters"),
        (text.replace('"drop": 0.4', '"drop": 1.4'), "drop: got 1.4"),
        (text.replace('"alpha": 0.8', '"alpha": "x"'), "alpha: got str, expected a number"),
    ):
        assert bad != text
        description.write_text(bad)
        assert_refused(folder, model, message)
    description.unlink()
    assert_refused(folder, model, "adapters.json", FileNotFoundError)
    description.write_text(json.dumps(json.loads(text)))
    load_adapters(folder, model)


def test_loading_over_adapters_is_refused_and_keeps_them(saved, images):
    model, _, folder = saved
    adapters = add_adapters(model, rank=2)
    before = model.encode_image(images)
    with pytest.raises(InputError, match="has adapters already"):
        load_adapters(folder, model)
    assert adapters_of(model) is adapters
    assert torch.equal(model.encode_image(images), before)


def test_state_dict_goes_round_and_refuses_others(saved):
    model, adapted, _ = saved
    state = {k: v.clone() for k, v in adapters_of(adapted).state_dict().items()}
    adapters = add_adapters(model, image_rank=3)
    first = {k: v.clone() for k, v in adapters.state_dict().items()}
    with pytest.raises(InputError, match=r"state: does not match the adapters.*weight is missing"):
        adapters.load_state_dict({k: v for k, v in state.items() if not k.endswith("mlp.weight")})
    assert all(torch.equal(v, first[k]) for k, v in adapters.state_dict().items())
    adapters.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in adapters.state_dict().items())

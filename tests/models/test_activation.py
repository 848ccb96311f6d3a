"""Weights get the activation that they need, whichever name the architecture was given."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import pretrained as tags
from safetensors.torch import save_file

from robustft.errors import InputError, InputWarning
from robustft.models import load_clip

from . import small_clip
from .small_clip import CONFIG, IMAGES

NAME = "test-activation-clip"
TWIN = f"{NAME}-quickgelu"


@pytest.fixture(scope="module", autouse=True)
def twins(tmp_path_factory):
    with small_clip.known(tmp_path_factory.mktemp("configs"), NAME, TWIN):
        yield


def saved(path, name, /, **entries):
    """A checkpoint of `name` with random weights, and open_clip's own model with them."""
    torch.manual_seed(5)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path, metadata=entries or None)
    else:
        torch.save({**entries, "state_dict": model.state_dict()}, path)
    return model


def outputs(model):
    with torch.no_grad():
        return model.encode_image(IMAGES), model.encode_text(open_clip.tokenize(["a cat"])[:, :9])


def same(model, right):
    return all(torch.equal(a, b) for a, b in zip(outputs(model), outputs(right), strict=True))


@pytest.mark.parametrize("tag_says", [True, False])
def test_a_tag_brings_its_activation(tmp_path, monkeypatch, tag_says):
    path = tmp_path / "weights.pt"
    right = saved(path, TWIN if tag_says else NAME)
    entry = {"mocked": {"file": str(path), "quick_gelu": tag_says}}
    monkeypatch.setitem(tags._PRETRAINED, NAME, entry)
    monkeypatch.setitem(tags._PRETRAINED, TWIN, entry)
    for name, is_quick in ((NAME, False), (TWIN, True)):
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            clip = load_clip(name, "mocked")
        said = [str(w.message) for w in met if issubclass(w.category, InputWarning)]
        assert same(clip.model, right)
        assert len(said) == (is_quick != tag_says)
        assert all("'mocked' needs" in line and "\n" not in line for line in said)


def test_every_tag_of_open_clip_that_needs_quickgelu_is_seen():
    from robustft.models.activation import activation_options

    seen = 0
    for name, tag in open_clip.list_pretrained():
        stated = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu")
        own = bool(open_clip.get_model_config(name).get("quick_gelu"))
        expected = {} if stated in (None, own) else {"force_quick_gelu": True}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)
            assert activation_options(name, tag) == expected, (name, tag)
        seen += bool(expected)
    assert seen > 20


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("weights.pt", {"name": "2026_01_01-model_ViT-B-16-quickgelu-lr_0.0005", "epoch": 3}),
        ("weights.pt", {"model": TWIN}),
        ("weights.pt", {"args": {"force_quick_gelu": True}}),
        ("weights.pt", {"model_cfg": {"quick_gelu": True}}),
        ("weights.safetensors", {"model": TWIN}),
        ("weights.safetensors", {"quick_gelu": "true"}),
        ("vit-b-16-quickgelu.pt", {}),
        ("ViT_B_16_QuickGELU.safetensors", {}),
    ],
)
def test_a_file_that_states_quickgelu_gets_it(tmp_path, file, entries):
    right = saved(tmp_path / file, TWIN, **entries)
    with pytest.warns(InputWarning, match="needs QuickGELU"):
        clip = load_clip(NAME, tmp_path / file)
    assert same(clip.model, right)
    assert same(load_clip(TWIN, tmp_path / file).model, right)


def test_a_configuration_beside_the_file_counts(tmp_path):
    right = saved(tmp_path / "open_clip_model.safetensors", TWIN)
    config = {"model_cfg": CONFIG | {"quick_gelu": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.warns(InputWarning, match="needs QuickGELU"):
        assert same(load_clip(NAME, tmp_path / "open_clip_model.safetensors").model, right)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*open_clip_config\.json"):
        load_clip(NAME, tmp_path / "open_clip_model.safetensors")


def test_a_silent_file_keeps_the_named_architecture_and_one_line_says_so(tmp_path):
    path = tmp_path / "weights.pt"
    right = saved(path, TWIN)
    assert same(load_clip(TWIN, path).model, right)
    with pytest.warns(InputWarning, match=f"does not say .* name the model {TWIN}"):
        assert not same(load_clip(NAME, path).model, right)


class Hostile:
    """Unpickled, it writes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (self.mark, "run")


@pytest.mark.parametrize("suffix", ["pt", "bin", "ckpt", "pth", "npy", "npz", "weights"])
def test_a_checkpoint_that_holds_code_is_refused_and_not_run(tmp_path, suffix):
    import numpy as np

    mark = tmp_path / "mark"
    path = tmp_path / f"hostile.{suffix}"
    if suffix == "npy":
        np.save(path, np.array([Hostile(mark)], dtype=object), allow_pickle=True)
    elif suffix == "npz":
        np.savez(path, weight=np.array([Hostile(mark)], dtype=object))
    else:
        torch.save({"state_dict": {"weight": Hostile(mark)}}, path)
    with pytest.raises(InputError) as refused:
        load_clip(NAME, path)
    assert path.name in str(refused.value)
    assert "\n" not in str(refused.value)
    path.write_bytes(pickle.dumps({"state_dict": Hostile(mark)}))
    with pytest.raises(InputError):
        load_clip(NAME, path)
    assert not mark.exists()


def test_the_command_line_says_it_in_one_line(tmp_path, capfd):
    from robustft.cli.app import run

    path = tmp_path / "weights-quickgelu.pt"
    saved(path, TWIN)
    arguments = ["--model", NAME, "--pretrained", str(path), "--eval-datasets", "inks"]
    assert run(["eval", *arguments, "--template", "photo", "--device", "cpu"]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "QuickGELU" in line]
    assert len(said) == 1
    assert said[0].startswith(f"robustft: pretrained: {str(path)!r} needs QuickGELU")

"""Loading models by name, and saying what is wrong when they cannot be."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

from robustft.errors import InputError
from robustft.models import copy_clip, load_clip

CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 24, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 9, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NAME = "test-small-clip"


@pytest.fixture(scope="module", autouse=True)
def small_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    open_clip.factory._MODEL_CONFIGS.pop(NAME)


def test_loads_with_everything_that_belongs_to_it():
    clip = load_clip(NAME, aug_cfg={"scale": (0.5, 0.6)})
    assert (clip.name, clip.pretrained) == (NAME, None)
    assert (clip.embed_dim, clip.context_length) == (12, 9)
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert not any(m.training for m in clip.model.modules())
    from PIL import Image

    image = Image.new("RGB", (30, 20), "red")
    assert clip.preprocess_val(image).shape == clip.preprocess_train(image).shape == (3, 16, 16)
    assert "(0.5, 0.6)" in str(clip.preprocess_train)
    assert clip.model.encode_text(clip.tokenizer(["a dog"])).shape == (1, 12)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_loads_a_checkpoint_file(tmp_path, suffix):
    source = load_clip(NAME).model.state_dict()
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": source}, path)
    else:
        from safetensors.torch import save_file

        save_file(source, path)
    clip = load_clip(NAME, path)
    assert clip.pretrained == str(path)
    assert all(torch.equal(v, source[k]) for k, v in clip.model.state_dict().items())


def test_a_copy_has_weights_of_its_own():
    clip = load_clip(NAME)
    twin = copy_clip(clip)
    with torch.no_grad():
        twin.model.logit_scale.fill_(0.0)
    assert twin.logit_scale == 1.0
    assert clip.logit_scale > 10
    assert twin.tokenizer is clip.tokenizer


def test_unusable_arguments_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no model 'ViT-B-23' in open_clip; did you mean .*ViT"):
        load_clip("ViT-B-23")
    with pytest.raises(InputError, match=r"neither a file nor a tag of ViT-B-32.*openai.*laion2b"):
        load_clip("ViT-B-32", "opnai")
    with pytest.raises(InputError, match=r"neither a file nor a tag.*\(no tags\)"):
        load_clip(NAME, tmp_path / "missing.pt")
    with pytest.raises(InputError, match="precision: got 'half'"):
        load_clip(NAME, precision="half")


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    state = load_clip(NAME).model.state_dict()
    torch.save({**state, "text_projection": torch.zeros(16, 5)}, path)
    with pytest.raises(InputError, match=f"could not be loaded into {NAME}.*text_projection"):
        load_clip(NAME, path)
    torch.save({k: v for k, v in state.items() if k != "ln_final.bias"}, path)
    with pytest.raises(InputError, match=r"could not be loaded.*ln_final\.bias"):
        load_clip(NAME, path)
    for suffix in ("pt", "safetensors"):
        path = tmp_path / f"damaged.{suffix}"
        path.write_bytes(b"\x00not a checkpoint" * 5)
        with pytest.raises(InputError, match=f"damaged.{suffix}' could not be loaded"):
            load_clip(NAME, path)


def test_precision_reaches_the_weights():
    clip = load_clip(NAME, precision="bf16")
    assert clip.model.visual.conv1.weight.dtype == torch.bfloat16


def test_the_tiny_model_brings_its_checkpoint(monkeypatch, tmp_path):
    from safetensors.torch import load_file

    from robustft.models import tiny

    clip = load_clip("robustft-tiny", pretrained="glyphs")
    stored = load_file(tiny.TINY_CHECKPOINT)
    own = clip.model.state_dict()
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[name], stored[name].float()) for name in own)
    assert clip.pretrained == "glyphs"
    assert load_clip("robustft-tiny").pretrained is None
    with pytest.raises(InputError, match=r"neither a file nor a tag of robustft-tiny.*glyphs"):
        load_clip("robustft-tiny", pretrained="openai")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(tiny.TINY_CHECKPOINT.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(tiny, "TINY_CHECKPOINT", damaged)
    with pytest.raises(InputError, match="SHA-256"):
        load_clip("robustft-tiny", pretrained="glyphs")

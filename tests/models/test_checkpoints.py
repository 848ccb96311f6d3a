"""Checkpoints of other projects, written as their own code writes them, load into open_clip."""

from __future__ import annotations

import json
import pickle
import sys
import types
import warnings

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from robustft.errors import InputError, InputWarning
from robustft.models import add_adapters, load_adapters, load_clip, merged_state_dict, save_adapters
from robustft.models.adapter_files import Base, attach_release
from robustft.models.checkpoints import read_checkpoint

from . import small_clip
from .small_clip import CONFIG, IMAGES

NAME = "test-checkpoints-clip"
TWIN = f"{NAME}-quickgelu"


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    with small_clip.known(tmp_path_factory.mktemp("configs"), NAME, TWIN):
        yield


def build(name=TWIN):
    torch.manual_seed(5)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def outputs(model):
    with torch.no_grad():
        return model.encode_image(IMAGES), model.encode_text(open_clip.tokenize(["a cat"])[:, :9])


def same(model, right):
    return all(torch.equal(a, b) for a, b in zip(outputs(model), outputs(right), strict=True))


def quiet_load(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        return load_clip(*arguments, **options)


@pytest.fixture
def papers(monkeypatch):
    """The classes of WiSE-FT and FLYP, in modules that are gone when the test reads."""
    module = types.ModuleType("src.models.modeling")
    for name in ("ImageEncoder", "CLIPEncoder", "ImageClassifier", "DataParallel"):
        setattr(module, name, type(name, (nn.Module,), {"__module__": module.__name__}))
    head = type("ClassificationHead", (nn.Linear,), {"__module__": module.__name__})
    module.ClassificationHead = head
    names = ("src", "src.models", "src.models.modeling")
    for name in names:
        sys.modules[name] = module if name == names[-1] else types.ModuleType(name)
    yield module
    for name in names:
        sys.modules.pop(name, None)


def pickled(value, path):
    path.write_bytes(pickle.dumps(value))
    for name in ("src", "src.models", "src.models.modeling"):
        sys.modules.pop(name, None)
    return path


def encoder(papers, model, kind="ImageEncoder"):
    found = getattr(papers, kind)()
    found.model, found.cache_dir = model, "cache"
    _, found.train_preprocess, found.val_preprocess = open_clip.create_model_and_transforms(NAME)
    return found


def test_a_classifier_of_wise_ft(tmp_path, papers):
    """The text transformer is deleted, the head has the scale folded in."""
    right = build()
    whole = build()
    delattr(whole, "transformer")
    head = papers.ClassificationHead(12, 4)
    head.normalize = True
    classifier = papers.ImageClassifier()
    classifier.image_encoder, classifier.classification_head = encoder(papers, whole), head
    classifier.process_images = True
    path = pickled(classifier, tmp_path / "checkpoint_10.pt")
    checkpoint = read_checkpoint(path)
    assert checkpoint.quick_gelu is True
    assert torch.equal(checkpoint.head.weight, head.weight)
    assert torch.equal(checkpoint.head.bias, head.bias)
    with pytest.raises(InputError, match="it has no text tower, expected both"):
        quiet_load(NAME, path)
    clip = quiet_load(NAME, path, image_only=True)
    assert not clip.has_text
    assert torch.equal(outputs(clip.model)[0], outputs(right)[0])
    assert torch.equal(clip.head.weight, head.weight)
    assert "src" not in sys.modules


def test_a_head_of_raw_features_is_refused(tmp_path, papers):
    classifier, head = papers.ImageClassifier(), papers.ClassificationHead(12, 4)
    head.normalize = False
    classifier.image_encoder, classifier.classification_head = encoder(papers, build()), head
    path = pickled(classifier, tmp_path / "raw.pt")
    with pytest.raises(InputError, match=r"raw\.pt: its head takes features as they are"):
        read_checkpoint(path)


def test_an_encoder_of_flyp_with_both_towers(tmp_path, papers):
    right = build(NAME)
    path = pickled(encoder(papers, build(NAME), "CLIPEncoder"), tmp_path / "checkpoint_9.pt")
    checkpoint = read_checkpoint(path)
    assert (checkpoint.kind, checkpoint.quick_gelu, checkpoint.head) == ("CLIPEncoder", False, None)
    assert same(load_clip(NAME, path).model, right)
    assert same(quiet_load(TWIN, path).model, right), "the file says that it needs GELU"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("suffix", ["pt", "old.pt"])
def test_a_checkpoint_of_open_clips_training(tmp_path, wrapped, suffix):
    """Epoch, optimizer (whose rate of a cosine is a NumPy number), scaler; DDP's prefix."""
    model = build(NAME)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sum(x.sum() for x in (model.encode_image(IMAGES),)).backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5 * (1 + np.cos(np.pi * 0.3)) * 1e-3
    prefix = "module." if wrapped else ""
    state = {prefix + k: v for k, v in model.state_dict().items()}
    path = tmp_path / f"epoch_3.{suffix}"
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict(),
         "scaler": {"scale": 65536.0}},
        path,
        _use_new_zipfile_serialization=suffix == "pt",
    )  # fmt: skip
    assert same(quiet_load(NAME, path).model, model)


def test_a_torchscript_archive(tmp_path):
    model = build()
    texts = open_clip.tokenize(["a cat"])[:, :9]
    traced = torch.jit.trace_module(model, {"encode_image": IMAGES, "encode_text": texts})
    path = tmp_path / "ViT.pt"
    torch.jit.save(traced, path)
    assert same(load_clip(TWIN, path).model, model)


def release_state(model, adapters, *, averaged=True, prefix="module.model."):
    """The names of R-Adapter's release for a model and our adapters on it."""
    state = {f"{prefix}{k}": v for k, v in model.state_dict().items() if "r_adapter" not in k}
    keys = {"weight": "f.weight", "down": "d.weight", "up": "u.weight", "scale": "s"}
    for name, tensor in adapters.state_dict().items():
        site, _, key = name.rpartition(".")
        shadow = key.startswith("ema_")
        if shadow and not averaged:
            continue
        block, _, place = site.rpartition(".")
        suffix = "_cache" * shadow
        value = tensor.reshape(1) if key.endswith("scale") else tensor
        their = keys[key.removeprefix("ema_")]
        state[f"{prefix}{block}.adapter_{place}{suffix}.{their}"] = value.clone()
    return state


def disturbed(model, **options):
    adapters = add_adapters(model, **options)
    with torch.no_grad():
        for tensor in adapters.state_dict().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    return adapters


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("averaged", [True, False])
def test_a_checkpoint_of_r_adapters_release(tmp_path, rank, averaged):
    model = build()
    adapters = disturbed(model, rank=rank)
    path = tmp_path / "checkpoint_10.pt"
    state = release_state(model, adapters, averaged=averaged)
    torch.save({"epoch": 10, "name": "run", "state_dict": state, "optimizer": {}}, path)
    adapters.use_ema = averaged
    for alpha in (None, 0.0, 0.8):
        right = build()
        right.load_state_dict(merged_state_dict(model, adapters, alpha))
        assert same(quiet_load(NAME, path, alpha=alpha).model, right)


def test_factors_wider_than_the_model_become_one_matrix(tmp_path):
    """The release builds a pair of factors where the rank exceeds the width."""
    model = build()
    tensors, wide = {}, {}
    for site in ("visual.transformer.resblocks.0", "visual.transformer.resblocks.1"):
        for place in ("attn", "mlp"):
            down, up = torch.randn(40, 24), torch.randn(24, 40)
            wide[site, place] = {"s": torch.tensor([0.1]), "d.weight": down, "u.weight": up}
            tensors[f"{site}.{place}.weight"] = up @ down
    adapters = attach_release(model, wide)
    assert adapters.config.towers == ("image",)
    for name, tensor in tensors.items():
        assert torch.equal(adapters.state_dict()[name], tensor)
        place, _, key = name.rpartition(".")
        assert torch.equal(adapters.state_dict()[f"{place}.ema_{key}"], tensor)
    adapters.remove()
    del wide["visual.transformer.resblocks.0", "attn"]["u.weight"]
    with pytest.raises(InputError, match=r"'u.weight' of .*resblocks.0.attn is missing"):
        attach_release(model, wide)


@pytest.mark.parametrize("peft", [False, True])
def test_a_folder_of_adapters_that_says_its_base_is_enough(tmp_path, peft):
    base = tmp_path / "base.pt"
    torch.save(build().state_dict(), base)
    clip = load_clip(TWIN, base)
    adapters = disturbed(clip.model)
    adapters.alpha = 0.7
    folder = tmp_path / "adapters"
    save_adapters(adapters, folder, base=Base(TWIN, str(base)), peft=peft)
    right = build()
    right.load_state_dict(merged_state_dict(clip.model, adapters))
    assert same(load_clip(TWIN, folder).model, right)
    with pytest.raises(InputError, match=f"made for {TWIN}"):
        load_clip(NAME, folder)
    again = load_adapters(folder, build())
    assert again.alpha == 0.7
    assert all(torch.equal(t, adapters.state_dict()[k]) for k, t in again.state_dict().items())
    if peft:
        described = json.loads((folder / "adapter_config.json").read_text())
        assert described["base_model_name_or_path"] == TWIN
        assert "visual.transformer.resblocks.0.mlp.c_proj" in described["target_modules"]
    save_adapters(adapters, folder, peft=peft)
    with pytest.raises(InputError, match="does not say which model"):
        load_clip(TWIN, folder)


def test_a_name_with_weights_as_pretrained(tmp_path):
    model = build()
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    config = {"model_cfg": CONFIG | {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    clip = load_clip(NAME, f"local-dir:{tmp_path}")
    assert clip.name == f"local-dir:{tmp_path}"
    assert same(clip.model, model)
    assert "0.5" in str(clip.preprocess_val)
    with pytest.raises(InputError, match=r"another model than ViT-B-32: got vision_cfg.image_size"):
        load_clip("ViT-B-32", f"local-dir:{tmp_path}")
    with pytest.raises(InputError, match=r"open_clip_config\.json"):
        load_clip(NAME, f"local-dir:{tmp_path / 'nowhere'}")


def test_what_is_no_clip_is_named(tmp_path):
    path = tmp_path / "other.pt"
    for content in ({"fc.weight": torch.ones(2, 2)}, nn.Linear(2, 2), [1, 2], {"epoch": 3}):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"other\.pt"):
            load_clip(NAME, path)
    loop = nn.Sequential(nn.Linear(2, 2))
    loop.again = nn.Sequential()
    loop.again.up = loop
    torch.save(loop, path)
    with pytest.raises(InputError, match="modules within modules"):
        load_clip(NAME, path)

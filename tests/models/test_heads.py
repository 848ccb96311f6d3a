"""Zero-shot heads, templates and classifiers."""

from __future__ import annotations

import contextlib
import copy
import json

import open_clip
import pytest
import torch

from robustft.errors import InputError, InputTypeError
from robustft.models import (
    Classifier,
    Clip,
    add_adapters,
    classifier_metadata,
    encode_texts,
    evaluating,
    interpolate,
    load_classifier,
    merged_state_dict,
    save_classifier,
    templates,
    zero_shot_weights,
)

CLASSES = ["cat", "small dog", "fish", "a bird", "ox"]
TEMPLATES = ["a photo of a {}.", "the {}", "{} again, and again"]


def tokenizer(texts: list[str]) -> torch.Tensor:
    tokens = torch.zeros(len(texts), 7, dtype=torch.long)
    for row, text in enumerate(texts):
        for place in range(5):
            tokens[row, place] = 1 + sum(map(ord, text[place::5])) % 48
        tokens[row, 5] = 49
    return tokens


@pytest.fixture
def clip(plain):
    return Clip("small", None, plain, lambda x: x, lambda x: x, tokenizer)


def straightforward(model, classnames, formats):
    rows = []
    for name in classnames:
        total = 0
        for template in formats:
            feature = model.encode_text(tokenizer([template.format(name)]))[0].double()
            total = total + feature / feature.norm()
        mean = total / len(formats)
        rows.append(mean / mean.norm())
    return torch.stack(rows).detach()


@pytest.mark.parametrize("batch_size", [1, 2, 7, 256])
def test_zero_shot_weights_equal_the_formula(clip, batch_size):
    got = zero_shot_weights(clip.model, tokenizer, CLASSES, TEMPLATES, batch_size=batch_size)
    assert got.dtype == torch.float32
    assert not got.requires_grad
    expected = straightforward(clip.model, CLASSES, TEMPLATES)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_agrees_with_open_clips_builder(clip):
    builder = open_clip.build_zero_shot_classifier
    theirs = builder(clip.model, tokenizer, CLASSES, open_clip.OPENAI_IMAGENET_TEMPLATES)
    ours = zero_shot_weights(clip.model, tokenizer, CLASSES, "openai")
    torch.testing.assert_close(ours.T, theirs, rtol=1e-4, atol=1e-5)


def test_texts_are_encoded_in_eval_mode_and_modes_return(clip):
    adapters = add_adapters(clip.model, drop=0.9)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.weight.normal_()
    clip.model.train()
    clip.model.visual.eval()
    modes = [m.training for m in clip.model.modules()]
    first = encode_texts(clip.model, tokenizer, CLASSES, batch_size=2)
    assert [m.training for m in clip.model.modules()] == modes
    assert torch.equal(first, encode_texts(clip.model, tokenizer, CLASSES, batch_size=2))
    clip.model.eval()
    expected = clip.model.encode_text(tokenizer(CLASSES)).detach()
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)
    with contextlib.suppress(KeyError), evaluating(clip.model.train()):
        assert not clip.model.training
        raise KeyError
    assert clip.model.training


def test_template_lists(tmp_path):
    openai = templates("openai")
    theirs = [t("snow leopard") for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert len(openai) == 80
    assert [t.format("snow leopard") for t in openai] == theirs
    assert len(templates("simple")) == 7
    assert templates("photo") == ["a photo of a {}."]
    functions = [lambda c: f"one {c}", "two {}"]
    assert templates(functions) == functions
    file = tmp_path / "templates.txt"
    file.write_text("a sketch of {}\n\n  the letter {} \n", encoding="utf-8")
    assert templates(file) == templates(str(file)) == ["a sketch of {}", "the letter {}"]


@pytest.mark.parametrize("bad", ["no place", "{} and {}", "{name}", "{", "{0} {1}"])
def test_bad_templates_are_named(bad, tmp_path):
    with pytest.raises(InputError, match=r"templates: got .*expected text with one"):
        templates(["a {}", bad])
    file = tmp_path / "templates.txt"
    file.write_text(bad)
    with pytest.raises(InputError, match=r"templates\.txt"):
        templates(file)


def with_article(name):
    """As WiSE-FT's templates for FMoW: the article and the case depend on the name."""
    return f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name.replace('_', ' ')}."


@pytest.mark.parametrize("build", ["weights", "classifier", "rebuilt"])
def test_functions_are_called_with_each_class_name(clip, build):
    names, functions = ["orange_x", "dog", "RED"], [with_article, str.lower, "the {}"]
    texts = [[with_article(name), name.lower(), f"the {name}"] for name in names]
    features = [encode_texts(clip.model, tokenizer, of_name).mean(0) for of_name in texts]
    expected = torch.nn.functional.normalize(torch.stack(features), dim=-1)
    if build == "weights":
        found = zero_shot_weights(clip.model, tokenizer, names, functions)
    else:
        start = "photo" if build == "rebuilt" else functions
        classifier = Classifier.zero_shot(clip, names, start)
        if build == "rebuilt":
            classifier.rebuild_head(tokenizer, functions)
        found = classifier.head.weight.detach() / clip.logit_scale
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", [None, "", 7])
def test_a_function_that_gives_no_text_is_named(clip, text):
    def silent(name):
        return text

    with pytest.raises(InputError, match=r"templates: silent\('dog'\) gave .*, not a text"):
        zero_shot_weights(clip.model, tokenizer, ["dog"], [silent])
    with pytest.raises(InputTypeError, match=r"templates: got 7, expected a string or a function"):
        templates([7])


def test_bad_text_arguments(clip, tmp_path):
    with pytest.raises(InputError, match="neither a file nor one of openai, simple, photo"):
        templates(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.txt: templates: got none"):
        templates(tmp_path / "empty.txt")
    with pytest.raises(InputError, match="classnames: got"):
        zero_shot_weights(clip.model, tokenizer, [], TEMPLATES)
    with pytest.raises(InputError, match="classnames: got 'cat'"):
        zero_shot_weights(clip.model, tokenizer, "cat", TEMPLATES)
    with pytest.raises(InputError, match="batch_size: got 0"):
        zero_shot_weights(clip.model, tokenizer, CLASSES, TEMPLATES, batch_size=0)
    with pytest.raises(InputError, match="texts: got"):
        encode_texts(clip.model, tokenizer, [])


def test_classifier_logits_are_scaled_cosines(clip, images):
    classifier = Classifier.zero_shot(clip, CLASSES, TEMPLATES)
    assert classifier.clip is clip.model
    feature = clip.model.encode_image(images).double()
    feature = feature / feature.norm(dim=1, keepdim=True)
    scale = clip.model.logit_scale.double().exp()
    assert clip.logit_scale == pytest.approx(scale.item(), rel=1e-6)
    expected = scale * feature @ straightforward(clip.model, CLASSES, TEMPLATES).T
    torch.testing.assert_close(classifier(images).double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(classifier.logits(classifier.features(images)), classifier(images))
    assert not classifier.head.bias.any()
    assert not classifier.head.weight.requires_grad  # it is made from texts, not learned


def test_logits_keep_float32_under_autocast(clip, images):
    classifier = Classifier.zero_shot(clip, CLASSES, TEMPLATES)
    features = classifier.features(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = classifier.logits(features)
    assert low.dtype == torch.float32
    assert torch.equal(low, classifier.logits(features))


def test_rebuild_head_follows_tower_and_scale(clip, images):
    classifier = Classifier.zero_shot(clip, CLASSES, TEMPLATES)
    old = classifier.head.weight.detach().clone()
    with torch.no_grad():
        classifier.head.bias.fill_(1.0)
        clip.model.logit_scale.add_(0.5)
        clip.model.token_embedding.weight.mul_(torch.linspace(0.5, 2, 16))
    assert classifier.rebuild_head(tokenizer, TEMPLATES) is classifier
    scale = clip.model.logit_scale.double().exp().detach()
    expected = scale * straightforward(clip.model, CLASSES, TEMPLATES)
    torch.testing.assert_close(classifier.head.weight.double(), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(classifier.head.weight, old, rtol=0.1)
    assert not classifier.head.bias.any()


def test_bad_heads_are_refused(plain):
    with pytest.raises(InputError, match=r"weight: got shape \[12\]"):
        Classifier(plain, torch.zeros(12), None, ["a"])
    with pytest.raises(InputError, match="classnames: got 1, expected 2"):
        Classifier(plain, torch.zeros(2, 12), None, ["a"])
    with pytest.raises(InputError, match=r"bias: got shape \[3\]"):
        Classifier(plain, torch.zeros(2, 12), torch.zeros(3), ["a", "b"])


def test_saved_classifier_comes_back(clip, images, tmp_path):
    classifier = Classifier.zero_shot(clip, CLASSES, TEMPLATES)
    with torch.no_grad():
        classifier.head.bias.normal_()
        classifier.clip.visual.proj.mul_(1.5)
    path = tmp_path / "model.safetensors"
    save_classifier(path, classifier, metadata={"model": "small", "seed": 3})
    assert classifier_metadata(path)["metadata"] == {"model": "small", "seed": 3}
    fresh = Clip("small", None, copy.deepcopy(clip.model), None, None, tokenizer)
    with torch.no_grad():
        fresh.model.visual.proj.zero_()
    loaded = load_classifier(path, fresh)
    assert torch.equal(loaded(images), classifier.eval()(images))
    assert loaded.classnames == CLASSES
    assert loaded.metadata == {"model": "small", "seed": 3}
    assert not fresh.model.visual.proj.any()  # what was given is left alone
    assert loaded.state_dict().keys() == classifier.state_dict().keys()
    interpolate(loaded.state_dict(), classifier.state_dict(), 0.5)


def test_classifier_of_another_model_is_refused(clip, make, tmp_path):
    path = tmp_path / "model.safetensors"
    save_classifier(path, Classifier.zero_shot(clip, CLASSES, TEMPLATES))
    other = Clip("other", None, make("custom-text"), None, None, tokenizer)
    with pytest.raises(InputError, match=r"does not match the model other: text\.\S+ is missing"):
        load_classifier(path, other)
    other = Clip("other", None, copy.deepcopy(clip.model), None, None, tokenizer)
    other.model.visual.proj = torch.nn.Parameter(torch.zeros(24, 9))
    with pytest.raises(InputError, match=r"visual.proj has shape \[24, 12\], expected \[24, 9\]"):
        load_classifier(path, other)


def test_what_is_no_classifier_is_refused(clip, tmp_path):
    from safetensors.torch import save_file

    classifier = Classifier.zero_shot(clip, CLASSES, TEMPLATES)
    with pytest.raises(InputError, match=r"ending in \.safetensors"):
        save_classifier(tmp_path / "model.pt", classifier)
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="metadata: got what JSON cannot hold"):
        save_classifier(path, classifier, metadata={"x": object()})
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        load_classifier(path, clip)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="not a classifier saved by robustft"):
        load_classifier(path, clip)
    path.write_bytes(b"\x07 nonsense")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_classifier(path, clip)
    save_classifier(path, classifier)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_classifier(path, clip)


def test_a_changed_byte_of_a_saved_classifier_is_found(clip, tmp_path):
    """Weights, class names, metadata and the header's JSON; a file without a checksum is read."""
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    save_classifier(path, Classifier.zero_shot(clip, CLASSES, TEMPLATES), metadata={"seed": 3})
    whole = path.read_bytes()
    places = [whole.index(CLASSES[0].encode()), whole.index(b"seed"), len(whole) - 7]
    places += [whole.index(b"format") + len(b'format\\"'), whole.index(b"classnames")]
    save_classifier(path, Classifier.zero_shot(clip, CLASSES, TEMPLATES), metadata={"seed": 3})
    assert path.read_bytes() == whole  # and nothing in it changes by itself
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
            load_classifier(path, clip)
    path.write_bytes(whole)
    text = json.dumps(classifier_metadata(path))
    assert "sha256" not in text
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # it is mapped
    save_file(tensors, path, {"robustft.classifier": text})
    assert load_classifier(path, clip).metadata == {"seed": 3}


def test_full_disk_keeps_the_old_file(clip, tmp_path, monkeypatch):
    import safetensors
    import safetensors.torch

    classifier = Classifier.zero_shot(clip, CLASSES, TEMPLATES)
    path = tmp_path / "model.safetensors"
    save_classifier(path, classifier)
    before = path.read_bytes()

    def full(*_, **__):
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_classifier(path, classifier)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_adapted_model_is_saved_only_after_merging(clip, images, tmp_path):
    plain = copy.deepcopy(clip)
    adapters = add_adapters(clip.model)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.ema_weight.normal_()
    classifier = Classifier.zero_shot(clip, CLASSES, TEMPLATES)
    with pytest.raises(InputError, match="carries adapters"):
        save_classifier(tmp_path / "model.safetensors", classifier)
    plain.model.load_state_dict(merged_state_dict(clip.model, adapters))
    merged = Classifier.zero_shot(plain, CLASSES, TEMPLATES)
    torch.testing.assert_close(merged(images), classifier.eval()(images), rtol=1e-4, atol=1e-3)
    save_classifier(tmp_path / "model.safetensors", merged)

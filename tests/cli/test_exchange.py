"""`robustft import` and `robustft export` end to end: what open_clip then loads is bit for bit."""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from robustft.cli.app import run
from robustft.errors import InputError, InputWarning
from robustft.models import (
    add_adapters,
    classifier_metadata,
    copy_clip,
    load_adapters,
    load_classifier,
    load_clip,
    merged_state_dict,
)
from robustft.models.checkpoints import Head, read_checkpoint
from robustft.models.export import save_hub_folder, save_open_clip

NAME = "test-exchange-clip"
TIMM = "test-exchange-timm"
TEXT = {"context_length": 9, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 16, "patch_size": 8, "width": 24, "layers": 2, "head_width": 8}
CONFIGS = {
    NAME: {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT},
    f"{NAME}-quickgelu": {
        "embed_dim": 12, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT
    },
    TIMM: {
        "embed_dim": 192,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224, "timm_model_name": "vit_tiny_patch16_224",
            "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "none",
        },
        "text_cfg": TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in CONFIGS:
        open_clip.factory._MODEL_CONFIGS.pop(name)


def outputs(model, length=9):
    size = model.visual.image_size[0]
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        texts = open_clip.tokenize(["a cat", "two dogs"], context_length=length)
        return model.encode_image(images), model.encode_text(texts), model.logit_scale


def same(model, right, length=9):
    pairs = zip(outputs(model, length), outputs(right, length), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        return function(*arguments, **options)


def spelled(transform):
    return str(transform).replace("[", "(").replace("]", ")")  # JSON has no tuples


def there_and_back(name, folder, length=9):
    """Export to both forms, and what open_clip alone makes of them."""
    clip = load_clip(name)
    path = folder / "model.safetensors"
    save_open_clip(path, clip)
    made, _, _ = open_clip.create_model_and_transforms(name, pretrained=str(path))
    assert same(made.eval(), clip.model, length)
    save_hub_folder(folder / "hub", clip, "# card\n")
    hub = f"local-dir:{folder / 'hub'}"
    made, train, val = open_clip.create_model_and_transforms(hub)
    assert same(made.eval(), clip.model, length)
    assert spelled(val) == spelled(clip.preprocess_val)
    assert spelled(train) == spelled(clip.preprocess_train)
    texts = ["a photo of a cat"]
    assert torch.equal(open_clip.get_tokenizer(hub)(texts), clip.tokenizer(texts))
    assert same(load_clip(name, hub).model, clip.model, length)
    again = read_checkpoint(path)
    assert again.state.keys() == clip.model.state_dict().keys()


@pytest.mark.parametrize("name", [NAME, f"{NAME}-quickgelu", TIMM])
def test_what_is_exported_open_clip_loads_bit_for_bit(tmp_path, name):
    there_and_back(name, tmp_path)


@pytest.mark.slow
def test_real_architectures_are_exported_bit_for_bit(tmp_path):
    there_and_back("ViT-B-32", tmp_path / "b32", 77)
    real = json.loads(json.dumps(open_clip.get_model_config("ViT-B-16-SigLIP")))
    # The tokenizer would come from the network.
    del real["text_cfg"]["hf_tokenizer_name"], real["text_cfg"]["tokenizer_kwargs"]
    real["text_cfg"] |= {"vocab_size": 49408}
    (tmp_path / "offline-b16-sig.json").write_text(json.dumps(real))
    open_clip.add_model_config(tmp_path)
    try:
        there_and_back("offline-b16-sig", tmp_path / "siglip", 64)
    finally:
        open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path)
        open_clip.factory._MODEL_CONFIGS.pop("offline-b16-sig")


def test_quickgelu_under_the_plain_name_is_kept(tmp_path):
    source = tmp_path / "vit-quickgelu.safetensors"
    save_file(open_clip.create_model(f"{NAME}-quickgelu").state_dict(), source)
    clip = quietly(load_clip, NAME, source)
    save_hub_folder(tmp_path / "hub", clip, "# card\n")
    made, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'hub'}")
    assert same(made.eval(), clip.model)
    save_open_clip(tmp_path / "plain.safetensors", clip)
    assert same(quietly(load_clip, NAME, tmp_path / "plain.safetensors").model, clip.model)


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    clip = load_clip(NAME)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="is there already, expected a new or an empty folder"):
        save_hub_folder(tmp_path, clip, "# card\n")
    assert (tmp_path / "mine.txt").read_text() == "x"
    head = Head(torch.ones(2, 12), None, ("a", "b"))
    (tmp_path / "hub").mkdir()
    save_hub_folder(tmp_path / "hub", clip, "# card\n", head=head)
    assert (tmp_path / "hub" / "README.md").read_text() == "# card\n"
    assert json.loads((tmp_path / "hub" / "classification_head.json").read_text()) == {
        "classnames": ["a", "b"]
    }
    with pytest.raises(InputError, match="robustft-tiny, which open_clip alone cannot build"):
        save_hub_folder(tmp_path / "tiny", load_clip("robustft-tiny"), "# card\n")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    torch.manual_seed(3)
    save_file(open_clip.create_model(NAME).state_dict(), path)
    return path


def trained(method, images, base, logs, *more):
    arguments = [
        *("train", "--method", method, "--model", NAME, "--pretrained", str(base)),
        *("--data-location", str(images), "--epochs", "1", "--batch-size", "8", "--lr", "1e-3"),
        *("--logs", str(logs), "--name", method, "--aug", "none", "--template", "photo", *more),
    ]
    assert quietly(run, arguments) == 0
    return logs / method


@pytest.fixture(scope="module")
def adapted(images, base, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    return trained("r-adapter", images, base, logs, "--ema", "0.1")


@pytest.fixture(scope="module")
def tuned(images, base, tmp_path_factory):
    return trained("ft", images, base, tmp_path_factory.mktemp("logs"))


def test_a_run_of_r_adapter_at_any_strength(adapted, base, tmp_path, capsys):
    plain = quietly(load_clip, NAME, base)
    adapters = load_adapters(adapted / "adapters", copy_clip(plain).model)
    for alpha in (None, 0.0, 0.3):
        out = tmp_path / f"{alpha}.safetensors"
        more = [] if alpha is None else ["--alpha", str(alpha)]
        assert quietly(run, ["export", "--run", str(adapted), "--out", str(out), *more]) == 0
        right = copy_clip(plain).model
        right.load_state_dict(merged_state_dict(adapters.model, adapters, alpha))
        made, _, _ = open_clip.create_model_and_transforms(NAME, pretrained=str(out))
        assert same(made.eval(), right)
    assert f"create_model_and_transforms('{NAME}', pretrained=" in capsys.readouterr().out


def test_adapters_as_a_folder_of_peft(adapted, tmp_path):
    out = tmp_path / "peft"
    arguments = ["export", "--run", str(adapted), "--format", "adapters", "--out", str(out)]
    assert quietly(run, [*arguments, "--alpha", "0.8"]) == 0
    assert {p.name for p in out.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    names = load_file(out / "adapter_model.safetensors").keys()
    assert all(name.startswith("base_model.model.") for name in names)
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "R_ADAPTER"
    file = tmp_path / "at.safetensors"
    assert (
        quietly(run, ["export", "--run", str(adapted), "--out", str(file), "--alpha", "0.8"]) == 0
    )
    merged = quietly(load_clip, NAME, file)
    assert same(quietly(load_clip, NAME, out).model, merged.model)
    assert same(quietly(load_clip, NAME, adapted / "adapters", alpha=0.8).model, merged.model)


def test_a_hub_folder_has_a_card_and_the_head(tuned, tmp_path):
    out = tmp_path / "my model"
    arguments = ["export", "--run", str(tuned), "--out", str(out), "--license", "apache-2.0"]
    assert quietly(run, arguments) == 0
    classifier = load_classifier(tuned / "model.safetensors", quietly(load_clip, NAME))
    made, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    assert same(made.eval(), classifier.clip)
    head = load_file(out / "classification_head.safetensors")
    assert torch.equal(head["weight"], classifier.head.weight)
    assert torch.equal(head["bias"], classifier.head.bias)
    from huggingface_hub import ModelCard

    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "open_clip")
    lines = [json.loads(line) for line in (tuned / "results.jsonl").read_text().splitlines()]
    tops = {
        x["dataset"]: x[f"{x['dataset']}:top1"]
        for x in lines
        if x.get("method") == "ft" and x["role"] != "geometry"
    }
    found = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert found == tops
    assert "| Method | ft |" in card.text
    assert "classification_head.safetensors" in card.text


def test_names_in_a_card_are_text():
    from huggingface_hub import ModelCard

    from robustft.report.card import CardFacts, model_card

    name = 'x: [1]\n---\n<script>alert("x")</script> | *b* {{ jinja }}'
    record = {"role": "id", "dataset": name, "split": "test", "n": 3, f"{name}:top1": 0.5}
    facts = CardFacts(title=name, load="pass", method="ft", base=name, data=name, licence="other")
    text = model_card(facts, [record])
    card = ModelCard(text)
    assert card.data.eval_results[0].metric_value == 0.5
    assert "\n" not in card.data.eval_results[0].dataset_name
    assert card.data.license == "other"
    assert "<script>" not in card.text
    assert all(line.count("|") - line.count("\\|") in (0, 3, 6) for line in card.text.splitlines())


def test_import_writes_what_open_clip_reads(tmp_path, base, capsys):
    model = open_clip.create_model(NAME)
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    source, out = tmp_path / "epoch_1.pt", tmp_path / "out.safetensors"
    torch.save({"epoch": 1, "state_dict": state, "optimizer": {}}, source)
    common = ["import", "--checkpoint", str(source), "--model", NAME]
    assert quietly(run, [*common, "--out", str(out)]) == 0
    made, _, _ = open_clip.create_model_and_transforms(NAME, pretrained=str(out))
    assert same(made.eval(), model.eval())
    assert quietly(run, [*common, "--out", str(tmp_path / "folder")]) == 2
    assert "expected a name ending in .safetensors" in capsys.readouterr().err
    assert quietly(run, [*common, "--out", str(out), "--text-from", str(base)]) == 2
    assert "a file with a text tower" in capsys.readouterr().err


def test_import_of_a_classifier_takes_its_text_tower_from_elsewhere(tmp_path, base, capsys):
    donor = quietly(load_clip, NAME, base)
    model = open_clip.create_model(NAME)
    image = {k: v for k, v in model.state_dict().items() if not k.startswith("transformer.")}
    tensors = {f"image_encoder.model.{k}": v for k, v in image.items()}
    tensors |= {"classification_head.weight": torch.randn(3, 12)}
    source, out = tmp_path / "checkpoint_10.pt", tmp_path / "out.safetensors"
    torch.save(tensors, source)
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    common = ["import", "--checkpoint", str(source), "--model", NAME, "--out", str(out)]
    assert quietly(run, common) == 2
    assert "--classnames: got nothing, expected the names of the 3" in capsys.readouterr().err
    assert quietly(run, [*common, "--classnames", str(names)]) == 2
    assert "no text tower" in capsys.readouterr().err
    assert not out.exists()
    more = ["--classnames", str(names), "--text-from", str(base)]
    assert quietly(run, [*common, *more]) == 0
    classifier = load_classifier(out, donor)
    assert classifier.classnames == ["a", "b", "c"]
    assert torch.equal(classifier.head.weight, tensors["classification_head.weight"])
    made = outputs(classifier.clip.eval())
    assert torch.equal(made[0], outputs(model.eval())[0])
    assert torch.equal(made[1], outputs(donor.model)[1])
    assert classifier_metadata(out)["metadata"]["kind"] == "classifier"
    clip = quietly(load_clip, NAME, out)  # a saved classifier is a checkpoint, too
    assert clip.head.classnames == ("a", "b", "c")
    assert same(clip.model, classifier.clip)


def test_import_of_r_adapters_release_gives_adapters_or_a_merged_model(tmp_path, adapted, base):
    plain = quietly(load_clip, NAME, base)
    adapters = load_adapters(adapted / "adapters", copy_clip(plain).model)
    state = {f"module.model.{k}": v for k, v in plain.model.state_dict().items()}
    keys = {"weight": "f.weight", "scale": "s"}
    for name, tensor in adapters.state_dict().items():
        site, _, key = name.rpartition(".")
        block, _, place = site.rpartition(".")
        suffix = "_cache" * key.startswith("ema_")
        their = keys[key.removeprefix("ema_")]
        state[f"module.model.{block}.adapter_{place}{suffix}.{their}"] = tensor.reshape(
            tensor.shape or (1,)
        )
    source = tmp_path / "checkpoint_10.pt"
    torch.save({"epoch": 10, "name": "x", "state_dict": state}, source)
    # The release is built on OpenAI's clip.
    common = ["import", "--checkpoint", str(source), "--model", f"{NAME}-quickgelu"]
    folder, file = tmp_path / "adapters", tmp_path / "merged.safetensors"
    assert quietly(run, [*common, "--out", str(folder), "--alpha", "0.8"]) == 0
    assert quietly(run, [*common, "--out", str(file), "--alpha", "0.8"]) == 0
    merged = quietly(load_clip, f"{NAME}-quickgelu", file)
    assert same(quietly(load_clip, f"{NAME}-quickgelu", folder).model, merged.model)
    right = copy_clip(merged).model
    right.load_state_dict(merged_state_dict(adapters.model, adapters, 0.8))
    assert same(merged.model, right)


def test_a_hostile_checkpoint_is_one_line_and_not_run(tmp_path, capsys):
    mark = tmp_path / "mark"

    class Hostile:
        def __reduce__(self):
            return Path.write_text, (mark, "run")

    path = tmp_path / "hostile.pt"
    path.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    out = ["--out", str(tmp_path / "out.safetensors")]
    assert run(["import", "--checkpoint", str(path), "--model", NAME, *out]) == 2
    error = capsys.readouterr().err
    assert "hostile.pt" in error
    assert error.count("\n") == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import"], "--checkpoint: got nothing"),
        (["import", "--checkpoint", "x.pt"], "--out: got nothing"),
        (["import", "--checkpoint", "absent.pt", "--out", "x.safetensors"], "absent.pt"),
        (["export"], "--out: got nothing"),
        (["export", "--out", "x.safetensors"], "--run: got nothing, expected --run, or --model"),
        (["export", "--out", "x.safetensors", "--format", "hub"], "expected a folder"),
        (["export", "--out", "x", "--format", "open_clip"], "expected a name ending in"),
        (["export", "--out", "x", "--format", "adapters"], "expected the folder of an R-Adapter"),
        (["export", "--out", ".", "--run", "y"], "y: no config.yaml there"),
        (["export", "--out", "x", "--run", "y", "--alpha", "2"], "--alpha: got 2"),
        (["export", "--out", "x", "--run", "y", "--model", "z"], "--model: got 'z' beside --run"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("robustft: ")
    assert list(tmp_path.iterdir()) == []


def test_what_open_clip_could_not_use_is_not_written(tmp_path):
    clip = load_clip(NAME)
    for change, message in (
        ({"has_text": False}, "no text tower"),
        ({"name": "hf:someone/clip"}, "which open_clip does not build"),
    ):
        with pytest.raises(InputError, match=message):
            save_open_clip(tmp_path / "x.safetensors", dataclasses.replace(clip, **change))
    add_adapters(clip.model)
    with pytest.raises(InputError, match="it carries adapters"):
        save_open_clip(tmp_path / "x.safetensors", clip)
    assert list(tmp_path.iterdir()) == []


def test_a_run_remembers_where_its_local_folder_lies(images, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_hub_folder("hub", quietly(load_clip, NAME, base), "# card\n")
    folder = trained("zero-shot", images, "local-dir:hub", tmp_path / "logs")
    assert f"pretrained: local-dir:{tmp_path}/hub" in (folder / "config.yaml").read_text()
    monkeypatch.chdir(folder)
    out = tmp_path / "again.safetensors"
    assert quietly(run, ["export", "--run", str(folder), "--out", str(out)]) == 0
    assert same(quietly(load_clip, NAME, out).model, quietly(load_clip, NAME, base).model)

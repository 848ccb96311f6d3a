"""An exported VRF gives the same probabilities where robustft is not there: PyTorch and ONNX."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustft.ensemble import VRF, vrf_export
from robustft.errors import InputError, InputWarning
from robustft.models import Classifier, load_clip

ROWS, WIDTH, CLASSES = 300, 16, 7


def data(count=ROWS, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=g)
    logits = [2 * torch.randn(count, CLASSES, generator=g) for _ in range(2)]
    for one in logits:
        one[torch.arange(count), labels] += 1.5
    features = torch.randn(count, WIDTH, generator=g)
    return features, *logits, labels


def fitted(**options):
    features, tuned, plain, labels = data()
    v = data(120, 1)
    names = ("val_features", "val_logits_finetuned", "val_logits_zeroshot", "val_labels")
    return VRF(**options).fit(features, tuned, plain, labels, **dict(zip(names, v, strict=True)))


def plain_module(vrf):
    return vrf_export.plain_module(vars(vrf))


VARIANTS = [
    {},
    {"k": 5, "a": 1.5, "b": 0.6},
    {"squared": False, "normalize": False},
    {"omega": "linear", "k": 3},
    {"omega": "binary", "k": 2},
    {"space": "logit", "calibrate": False, "a": 1.0, "b": 0.3},
    {"bank": "all", "k": 9},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_plain_module_gives_the_same_probabilities(options):
    vrf = fitted(**options)
    features, tuned, plain, _ = data(50, 2)
    expected = vrf.predict_proba(features, tuned, plain)
    found = plain_module(vrf)(features, tuned, plain)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain_module(vrf).distance(features), vrf.distance(features))


def test_without_a_failure_both_models_count_alike():
    features, _, plain, labels = data()
    with pytest.warns(InputWarning, match="corrects no zero-shot error"):
        vrf = VRF(calibrate=False, a=1.5, b=0.6).fit(features, plain, plain, labels)
    features, tuned, plain, _ = data(20, 2)
    expected = vrf.predict_proba(features, tuned, plain)
    torch.testing.assert_close(plain_module(vrf)(features, tuned, plain), expected)


SCRIPT = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
sys.modules["robustft"] = None  # importing it is an error
import vrf
inputs = load_file("inputs.safetensors")
model = vrf.load(".")
found = model(inputs["features"], inputs["tuned"], inputs["plain"])
if len(sys.argv) > 1:
    program = torch.export.load("classifier.pt2").module()
    save_file({"found": found, "images": program(inputs["images"])}, "outputs.safetensors")
else:
    save_file({"found": found}, "outputs.safetensors")
assert not any(name.startswith(("robustft.", "open_clip")) for name in sys.modules), "it is there"
"""


def test_the_folder_runs_without_robustft(tmp_path):
    vrf = fitted(k=4)
    folder = tmp_path / "exported"
    vrf.export(folder, classnames=list("abcdefg"), onnx=False)
    names = {"vrf.py", "vrf.json", "vrf.safetensors"}
    assert {p.name for p in folder.iterdir()} == names
    assert json.loads((folder / "vrf.json").read_text())["classnames"] == list("abcdefg")
    features, tuned, plain, _ = data(30, 2)
    inputs = {"features": features, "tuned": tuned, "plain": plain}
    save_file(inputs, folder / "inputs.safetensors")
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, check=True)
    from safetensors.torch import load_file

    found = load_file(folder / "outputs.safetensors")["found"]
    torch.testing.assert_close(found, vrf.predict_proba(features, tuned, plain))
    with pytest.raises(InputError, match=r"holds 'inputs\.safetensors'"):
        vrf.export(folder, onnx=False)


def in_onnxruntime(path, **inputs):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(found)


@pytest.mark.parametrize("options", VARIANTS[1:4], ids=str)
def test_onnx_gives_the_same_probabilities_for_any_batch(tmp_path, options):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    vrf = fitted(**options)
    vrf.export(tmp_path / "exported", onnx=True)
    onnx.checker.check_model(str(tmp_path / "exported" / "vrf.onnx"))
    for count in (1, 33):
        features, tuned, plain, _ = data(count, 2)
        found = in_onnxruntime(
            tmp_path / "exported" / "vrf.onnx",
            features=features,
            logits_finetuned=tuned,
            logits_zeroshot=plain,
        )
        expected = vrf.predict_proba(features, tuned, plain)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def models():
    """A zero-shot classifier of the tiny model, one with another encoder, one with another head."""
    clip = load_clip("robustft-tiny", "glyphs")
    names = ["a", "b", "c"]
    zero_shot = Classifier.zero_shot(clip, names, "photo").eval()
    other = copy.deepcopy(zero_shot)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    probed = copy.deepcopy(zero_shot)
    nn.init.normal_(probed.head.weight)
    return zero_shot, other.eval(), probed.eval()


def vrf_of(zero_shot, tuned, features="finetuned"):
    images = torch.randn(60, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        f = tuned.features(images) if features == "finetuned" else zero_shot.features(images)
        logits = tuned(images), zero_shot(images)
    labels = logits[0].argmax(dim=1)
    vrf = VRF(k=2, a=0.4, b=0.3, calibrate=False, features=features)
    return vrf.fit(f, *logits, labels)


@pytest.mark.parametrize(
    ("shared", "features"),
    [
        (True, "finetuned"),
        (False, "finetuned"),
        pytest.param(False, "zeroshot", marks=pytest.mark.slow),
    ],
)
def test_images_to_probabilities(tmp_path, models, shared, features):
    zero_shot, other, probed = models
    tuned = probed if shared else other
    vrf = vrf_of(zero_shot, tuned, features)
    folder = tmp_path / "exported"
    wanted = None if shared else False  # ONNX of the whole once
    if shared:
        pytest.importorskip("onnxscript")
    vrf.export(folder, zero_shot, tuned, ["a", "b", "c"], onnx=wanted)
    images = torch.randn(5, 3, 24, 24, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        of = tuned if features == "finetuned" else zero_shot
        expected = vrf.predict_proba(of.features(images), tuned(images), zero_shot(images))
    rows = torch.randn(5, vrf.failures_.shape[1])
    some = torch.randn(5, 3)
    inputs = {"features": rows, "tuned": some, "plain": some, "images": images}
    save_file({k: v.clone() for k, v in inputs.items()}, folder / "inputs.safetensors")
    subprocess.run([sys.executable, "-c", SCRIPT, "images"], cwd=folder, check=True)
    from safetensors.torch import load_file

    found = load_file(folder / "outputs.safetensors")["images"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    program = torch.export.load(folder / "classifier.pt2")
    calls = [n for n in program.graph.nodes if "conv2d" in str(n.target)]
    assert len(calls) == (5 if shared else 10), "a shared encoder runs once"
    if shared:
        made = in_onnxruntime(folder / "classifier.onnx", images=images)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_arguments(tmp_path, models):
    with pytest.raises(InputError, match="not fitted"):
        VRF().export(tmp_path / "x")
    with pytest.raises(InputError, match="got one of them"):
        fitted().export(tmp_path / "x", models[0])
    assert not (tmp_path / "x").exists()

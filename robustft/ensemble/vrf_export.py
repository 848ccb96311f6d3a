"""Writing a fitted VRF so that it runs without robustft: plain PyTorch, torch.export, ONNX.

| file | what it is |
|---|---|
| vrf.py | `robustft.ensemble.standalone`, which needs torch and safetensors alone |
| vrf.safetensors, vrf.json | the bank, both heads; the settings and class names |
| vrf.onnx | features and both logits to probabilities |
| classifier.pt2 | images to probabilities, for `torch.export.load`; with both models |
| classifier.onnx | the same in ONNX |
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustft.atomic import replacing_folder, write_json, write_text
from robustft.ensemble import standalone
from robustft.ensemble.two_heads import same_encoder
from robustft.errors import InputError, warn
from robustft.optional import install_hint, require

if TYPE_CHECKING:
    from robustft.models.heads import Classifier

CODE, SETTINGS, TENSORS = "vrf.py", "vrf.json", "vrf.safetensors"
ONNX, PROGRAM, CLASSIFIER_ONNX = "vrf.onnx", "classifier.pt2", "classifier.onnx"
_OWN = frozenset((CODE, SETTINGS, TENSORS, ONNX, PROGRAM, CLASSIFIER_ONNX))
_PACKAGES = ("onnx", "onnxscript")


def settings_of(fitted: Mapping[str, Any], classnames: Sequence[str] = ()) -> dict[str, Any]:
    """What vrf.json holds of a fitted VRF, given its attributes by name."""
    numbers = ("k", "a", "b", "temperature_finetuned", "temperature_zeroshot")
    chosen = ("squared", "normalize", "omega", "space", "features")
    return {
        **{name: fitted[f"{name}_"] for name in numbers},
        **{name: fitted[name] for name in chosen},
        "classnames": list(classnames),
    }


def check_folder(folder: str | Path) -> None:
    """InputError where a folder holds anything that an export does not write."""
    target = Path(folder)
    if target.exists():
        others = sorted(p.name for p in target.iterdir() if p.name.split(".data")[0] not in _OWN)
        if others:
            raise InputError(f"folder: {target} holds {others[0]!r}, expected a new folder")


def plain_module(fitted: Mapping[str, Any]) -> standalone.VRFModel:
    """A fitted VRF, given its attributes by name, as a plain module on the CPU; its V is a copy."""
    failures = fitted["failures_"].detach().cpu().clone()
    return standalone.VRFModel(settings_of(fitted), failures).eval()


def export_vrf(
    fitted: Mapping[str, Any],
    folder: str | Path,
    zero_shot: Classifier | None,
    fine_tuned: Classifier | None,
    classnames: Sequence[str],
    onnx: bool | None,
) -> None:
    """`VRF.export`. fitted: the VRF's attributes by name."""
    target = Path(folder)
    check_folder(target)
    if (zero_shot is None) != (fine_tuned is None):
        raise InputError("zero_shot, fine_tuned: got one of them, expected both or neither")
    if onnx is None:
        onnx = all(importlib.util.find_spec(package) is not None for package in _PACKAGES)
        if not onnx:
            warn(f"onnx is not installed, so no ONNX files are written: {install_hint('onnx')}")
    elif onnx:
        for package in _PACKAGES:
            require(package, extra="onnx")
    module = plain_module(fitted)
    tensors = {"bank": module.bank}
    whole = None
    if zero_shot is not None and fine_tuned is not None:
        whole = _classifier(module, zero_shot, fine_tuned)
        for name in ("head_finetuned", "head_zeroshot"):
            head = getattr(whole, name)
            tensors |= {f"{name}.weight": head.weight.detach(), f"{name}.bias": head.bias.detach()}
    save_file = require("safetensors.torch", extra="openclip").save_file
    with replacing_folder(target) as temporary:
        source = Path(standalone.__file__).read_text(encoding="utf-8")
        write_text(temporary / CODE, source)
        write_json(temporary / SETTINGS, settings_of(fitted, classnames))
        save_file({k: t.contiguous() for k, t in tensors.items()}, str(temporary / TENSORS))
        if onnx:
            width, classes = module.bank.shape[1], len(classnames) or 2
            if fine_tuned is not None:
                classes = len(fine_tuned.classnames)
            inputs = (torch.randn(2, width), torch.randn(2, classes), torch.randn(2, classes))
            names = ("features", "logits_finetuned", "logits_zeroshot")
            _to_onnx(module, inputs, names, temporary / ONNX, classes=True)
        if whole is not None and fine_tuned is not None:
            images = _images_for(fine_tuned)
            batch = torch.export.Dim("batch")
            with torch.no_grad():
                program = torch.export.export(whole, (images,), dynamic_shapes=({0: batch},))
            torch.export.save(program, temporary / PROGRAM)
            if onnx:
                _to_onnx(whole, (images,), ("images",), temporary / CLASSIFIER_ONNX)


class _Encoder(nn.Module):
    """The image tower alone."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.visual = copy.deepcopy(clip.visual).cpu().float()

    def forward(self, images: Tensor) -> Tensor:
        found = self.visual(images)
        return found[0] if isinstance(found, tuple) else found  # CoCa gives its tokens, too


def _classifier(
    module: standalone.VRFModel, zero_shot: Classifier, fine_tuned: Classifier
) -> standalone.VRFClassifier:
    shared = same_encoder(zero_shot, fine_tuned)
    heads = tuple(copy.deepcopy(one.head).cpu().float() for one in (fine_tuned, zero_shot))
    whole = standalone.VRFClassifier(
        module,
        _Encoder(fine_tuned.clip),
        None if shared else _Encoder(zero_shot.clip),
        (heads[0], heads[1]),
    )
    return whole.requires_grad_(False).eval()


def _images_for(classifier: Classifier) -> Tensor:
    size = classifier.clip.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(2, 3, height, width)


def _to_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...],
    path: Path,
    *,
    classes: bool = False,
) -> None:
    batch = torch.export.Dim("batch")
    shapes: list[dict[int, Any]] = [{0: batch} for _ in inputs]
    if classes:
        count = torch.export.Dim("classes")
        shapes = [shapes[0], *({0: batch, 1: count} for _ in inputs[1:])]
    with torch.no_grad(), warnings.catch_warnings():
        # An axis of one size in several inputs has the first one's name.
        warnings.filterwarnings("ignore", ".*axis name: .* will not be used", UserWarning)
        torch.onnx.export(
            module,
            inputs,
            str(path),
            input_names=list(names),
            output_names=["probabilities"],
            dynamic_shapes=tuple(shapes),
            dynamo=True,
            verbose=False,
        )

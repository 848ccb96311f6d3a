"""A fitted VRF as plain PyTorch: this file and the two beside it need torch and safetensors alone.

    d(x)   = distance of x's feature to its k-th nearest row of the bank V
    ω(x)   = σ(-(d(x) - a)/b)
    P(y|x) = ω(x)·softmax(z_ft/T_ft) + (1-ω(x))·softmax(z_zs/T_zs)

from "Robust Fine-tuning of Zero-shot Models via Variance Reduction", arXiv 2411.06966.
`load(folder)` reads vrf.json and vrf.safetensors. No custom op, no branch that hangs on data: it
compiles and exports.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VRFModel(nn.Module):
    """The mixture of two models' outputs. settings: the contents of vrf.json; bank: V, [M, D]."""

    bank: Tensor

    def __init__(self, settings: dict, bank: Tensor) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.register_buffer("bank", bank)

    def distance(self, features: Tensor) -> Tensor:
        """d(x) [B] of features [B, D]; a batch takes a matrix [B, M]."""
        if self.settings["normalize"]:
            features = F.normalize(features, dim=1)
        half = 0.5 * self.bank.square().sum(dim=1)
        # The k-th nearest row; its distance is then taken directly, without cancellation.
        nearest = (features @ self.bank.T - half).topk(self.settings["k"], dim=1).indices[:, -1]
        squared = (features - self.bank[nearest]).square().sum(dim=1)
        return squared if self.settings["squared"] else squared.sqrt()

    def weight(self, features: Tensor) -> Tensor:
        """ω(x) [B], the share of the fine-tuned model."""
        if len(self.bank) == 0:  # no failure: both alike
            return torch.full_like(features[:, 0], 0.5)
        distance, a, b = self.distance(features), self.settings["a"], self.settings["b"]
        if self.settings["omega"] == "linear":
            return (b * (a - distance)).clamp(0.0, 1.0)
        if self.settings["omega"] == "binary":
            return (distance < a).to(distance.dtype)
        return torch.sigmoid((a - distance) / b)

    def forward(
        self, features: Tensor, logits_finetuned: Tensor, logits_zeroshot: Tensor
    ) -> Tensor:
        """P [B, C] of features [B, D] (of the model that vrf.json names) and both logits [B, C]."""
        w = self.weight(features).unsqueeze(1)
        finetuned = logits_finetuned / self.settings["temperature_finetuned"]
        zeroshot = logits_zeroshot / self.settings["temperature_zeroshot"]
        if self.settings["space"] == "logit":
            return (w * finetuned + (1 - w) * zeroshot).softmax(dim=1)
        return w * finetuned.softmax(dim=1) + (1 - w) * zeroshot.softmax(dim=1)


class VRFClassifier(nn.Module):
    """Both models behind one call: images to probabilities.

    finetuned, zeroshot: image encoders, each from images [B, 3, H, W] to features [B, D]; zeroshot
    is None where both heads share the first, which then runs once. heads: (fine-tuned, zero-shot)
    linear layers from features of length 1 to logits.
    """

    def __init__(
        self,
        vrf: VRFModel,
        finetuned: nn.Module,
        zeroshot: "nn.Module | None",
        heads: "tuple[nn.Linear, nn.Linear]",
    ) -> None:
        super().__init__()
        self.vrf, self.finetuned, self.zeroshot = vrf, finetuned, zeroshot
        self.head_finetuned, self.head_zeroshot = heads

    def forward(self, images: Tensor) -> Tensor:
        """P [B, C] of preprocessed images [B, 3, H, W]."""
        tuned = F.normalize(self.finetuned(images), dim=1)
        plain = tuned if self.zeroshot is None else F.normalize(self.zeroshot(images), dim=1)
        features = tuned if self.vrf.settings["features"] == "finetuned" else plain
        return self.vrf(features, self.head_finetuned(tuned), self.head_zeroshot(plain))


def load(folder: "str | Path") -> VRFModel:
    """The VRF that was exported into `folder`, in eval mode on the CPU."""
    from safetensors.torch import load_file

    settings = json.loads((Path(folder) / "vrf.json").read_text(encoding="utf-8"))
    return VRFModel(settings, load_file(Path(folder) / "vrf.safetensors")["bank"]).eval()


def load_heads(folder: "str | Path") -> "tuple[nn.Linear, nn.Linear]":
    """The heads (fine-tuned, zero-shot) that were exported with it."""
    from safetensors.torch import load_file

    tensors = load_file(Path(folder) / "vrf.safetensors")
    heads = []
    for name in ("head_finetuned", "head_zeroshot"):
        weight = tensors[f"{name}.weight"]
        head = nn.Linear(weight.shape[1], weight.shape[0])
        head.load_state_dict({"weight": weight, "bias": tensors[f"{name}.bias"]})
        heads.append(head)
    return heads[0], heads[1]

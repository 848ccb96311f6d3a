"""Small models of every shape that R-Adapter has to fit, made offline with random weights."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.transformer import Transformer
from torch import nn

VISION = {"image_size": 16, "patch_size": 8, "width": 24, "layers": 2, "head_width": 8}
TEXT = {"context_length": 7, "vocab_size": 50, "width": 16, "heads": 2, "layers": 3}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear"}


def build(kind: str) -> nn.Module:
    vision, text, cls = dict(VISION), dict(TEXT), open_clip.CLIP
    if kind == "layer-scale":
        vision["ls_init_value"] = text["ls_init_value"] = 0.3
    elif kind == "custom-text":
        cls = open_clip.CustomTextCLIP
    elif kind == "custom-block":
        # scale_attn puts a layer norm between the attention and the layer scale.
        extra = {"scale_attn": True, "qk_norm": True, "scale_fc": True, "ls_init_value": 0.3}
        vision |= extra
        text |= extra
    if kind == "coca":
        vision |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        text |= {"embed_cls": True, "output_tokens": True}
        decoder = {"context_length": 7, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
        return open_clip.CoCa(12, decoder, text, vision)
    model = cls(12, vision, text)
    if kind == "tokens-first":
        stack = Transformer(TEXT["width"], TEXT["layers"], TEXT["heads"], batch_first=False)
        stack.load_state_dict(model.transformer.state_dict())
        model.transformer = stack
    elif kind == "no-bias":
        for block in model.visual.transformer.resblocks:
            block.attn = nn.MultiheadAttention(24, 3, bias=False, batch_first=True)
            block.mlp.c_proj.register_parameter("bias", None)
    elif kind.startswith("timm"):
        model.visual = timm_tower(kind)
    return model


def timm_tower(kind: str) -> nn.Module:
    import timm

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
            if kind == "timm-eva":
                name = "eva02_tiny_patch14_224"
            else:
                name = "vit_tiny_patch16_224"
                options |= {"init_values": 0.3, "proj_bias": kind != "timm-no-bias"}
                options["drop_path_rate"] = 0.1
            self.trunk = timm.create_model(name, num_classes=12, **options)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.trunk(x)

    return Tower()


KINDS = (
    "plain", "layer-scale", "custom-text", "custom-block", "coca", "tokens-first", "no-bias",
    "timm", "timm-no-bias", "timm-eva",
)  # fmt: skip


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Every parameter non-trivial, biases and layer scales included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            # open_clip leaves CoCa's text_projection uninitialised: keep what is there in bounds.
            parameter.nan_to_num_(0.0).clamp_(-3, 3).add_(0.1 * noise.to(parameter.dtype))
    return model


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return randomise(build(request.param)).eval()


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(0)
    return randomise(build("plain")).eval()


@pytest.fixture
def make():
    """make(kind) -> a small model of that kind."""

    def _make(kind: str) -> nn.Module:
        torch.manual_seed(0)
        return randomise(build(kind)).eval()

    return _make


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def texts() -> torch.Tensor:
    tokens = torch.randint(1, 49, (5, 7), generator=torch.Generator().manual_seed(3))
    tokens[:, 5] = 49  # the end token has the highest number
    return tokens

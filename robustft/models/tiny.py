"""The built-in tiny CLIP, `robustft-tiny`: an architecture that open_clip builds unmodified.

Image tower: a timm VisionTransformer over a convolutional stem, 24 × 24 pixels to 3 × 3 tokens, two
blocks of width 96. (At this size a plain patch embedding does not get off the ground.)
Text tower: open_clip's transformer, two layers of width 64, over a byte-pair vocabulary in which
every word of the built-in world's captions is one token. Shared space: 64 dimensions. About 480,000
parameters; no BatchNorm, so weights can be averaged and interpolated freely.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustft import cache
from robustft.atomic import replacing
from robustft.data.words import VOCABULARY
from robustft.errors import InputError
from robustft.optional import require

TINY_NAME = "robustft-tiny"
TINY_CHECKPOINT = Path(__file__).with_name("tiny_glyphs.safetensors")
TINY_SHA256 = "d4fc96dd4dc78560eb02398a0b7b2d8cae0843b4e554d9ccfb31aa8208348bb3"

IMAGE_SIZE = 24
EMBED_DIM = 64
CONTEXT_LENGTH = 24
_TRUNK = "robustft_tiny_vit"
_WIDTH = 96


class ConvStem(nn.Module):
    """Images [B, 3, 24, 24] to tokens [B, 9, 96]; takes timm's arguments for an embed layer."""

    def __init__(
        self,
        img_size: int = IMAGE_SIZE,
        patch_size: int = 8,
        in_chans: int = 3,
        embed_dim: int = _WIDTH,
        **_: Any,
    ) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.layers = nn.Sequential(
            *_conv_norm_act(in_chans, 24, stride=2),
            *_conv_norm_act(24, 48),
            *_conv_norm_act(48, 64, stride=2),
            *_conv_norm_act(64, embed_dim, stride=2),
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(2).transpose(1, 2)


def _conv_norm_act(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.GroupNorm(4, outputs), nn.GELU()]


def register() -> None:
    """Make `robustft-tiny` known to timm and open_clip; calling it again does nothing.

    Afterwards `open_clip.create_model_and_transforms("robustft-tiny")` and
    `open_clip.get_tokenizer("robustft-tiny")` work. Two small files (the configuration and the
    vocabulary) are written to the user's cache folder, since open_clip reads both from disk.
    """
    open_clip = require("open_clip", extra="openclip")
    if TINY_NAME in open_clip.list_models():
        return
    registry = require("timm.models", extra="openclip")
    if not registry.is_model(_TRUNK):
        registry.register_model(robustft_tiny_vit)
    open_clip.add_model_config(_config_file())


def robustft_tiny_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The image tower's trunk, as timm builds it."""
    if pretrained:
        raise InputError(f"{_TRUNK} has no image-only pre-trained weights; pass pretrained=False")
    vision_transformer = require("timm.models.vision_transformer", extra="openclip")
    settings: dict[str, Any] = {
        "img_size": IMAGE_SIZE,
        "patch_size": 8,
        "embed_dim": _WIDTH,
        "depth": 2,
        "num_heads": 3,
        "mlp_ratio": 2.0,
        "class_token": False,
        "global_pool": "avg",
        "embed_layer": ConvStem,
        "num_classes": 0,
    }
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # timm's, for weights
        kwargs.pop(key, None)
    model: nn.Module = vision_transformer.VisionTransformer(**(settings | kwargs))
    # timm starts positions near zero; averaged over the tokens, a glyph is then a bag of strokes.
    nn.init.normal_(model.pos_embed, std=0.5)  # type: ignore[arg-type]
    model.default_cfg = {  # type: ignore[assignment]
        "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
        "pool_size": None,
        "num_classes": 0,
    }
    return model


def verify(path: Path | None = None) -> Path:
    """The checkpoint's path (default: the packaged one), once its SHA-256 equals TINY_SHA256.

    Errors: InputError if the file is missing or differs.
    """
    path = TINY_CHECKPOINT if path is None else path
    if not path.is_file():
        raise InputError(f"the tiny model's checkpoint is missing: {path}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != TINY_SHA256:
        raise InputError(
            f"the tiny model's checkpoint {path} has SHA-256 {found}, expected {TINY_SHA256}; "
            "install the package anew or retrain it"
        )
    return path


def byte_pair_merges(words: tuple[str, ...] = VOCABULARY) -> list[tuple[str, str]]:
    """Byte-pair merges, in order, after which every one of `words` is a single token.

    Ordinary byte-pair training on the words, each counted once, carried on to the end: the pair
    that occurs most often is merged first, ties going to the alphabetically first.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelled for pair in pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    position = 0
    while position < len(word):
        if tuple(word[position : position + 2]) == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return merged


@lru_cache(maxsize=1)
def _vocabulary_bytes() -> bytes:
    """The merges in the gzip format of open_clip's SimpleTokenizer; the same bytes every time."""
    lines = ["#version: robustft-tiny", *(" ".join(pair) for pair in byte_pair_merges())]
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write("\n".join(lines).encode())
    return buffer.getvalue()


def _config_file() -> Path:
    """Write the vocabulary and the configuration that names it, unless they are there already."""
    vocabulary = _vocabulary_bytes()
    # 256 bytes, each also as the end of a word, the merges, and the start and end of a text.
    vocab_size = 2 * 256 + len(byte_pair_merges()) + 2
    folder = cache.folder() / hashlib.sha256(vocabulary).hexdigest()[:16]
    bpe_path = folder / "vocabulary.txt.gz"
    config = {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {
            "timm_model_name": _TRUNK,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": IMAGE_SIZE,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": 64,
            "heads": 4,
            "layers": 2,
            "tokenizer_kwargs": {"bpe_path": str(bpe_path)},
        },
    }
    text = json.dumps(config, indent=2).encode()
    config_path = folder / f"{TINY_NAME}.json"
    for path, content in ((bpe_path, vocabulary), (config_path, text)):
        if not path.is_file() or path.read_bytes() != content:
            with replacing(path) as temporary:
                temporary.write_bytes(content)
    return config_path

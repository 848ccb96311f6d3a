"""A CLIP of open_clip's in two architectures, with GELU and with QuickGELU, for the tests here."""

from __future__ import annotations

import contextlib
import json

import open_clip
import torch

CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 24, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 9, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@contextlib.contextmanager
def known(folder, name, twin):
    """Both architectures under names of a test file's own, of which open_clip knows inside."""
    (folder / f"{name}.json").write_text(json.dumps(CONFIG))
    (folder / f"{twin}.json").write_text(json.dumps(CONFIG | {"quick_gelu": True}))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    for one in (name, twin):
        open_clip.factory._MODEL_CONFIGS.pop(one)

"""What a loss never sees is not trained: SigLIP's bias, and parts outside the towers."""

import copy
import json

import pytest
import torch

from robustft.methods import METHODS

CONFIG = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 24, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    import open_clip

    from robustft.models import load_clip

    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny-biased.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    return load_clip("tiny-biased")


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.head_from_text])
def test_every_trained_parameter_gets_a_gradient_and_the_bias_stays(clip, name):
    from robustft.methods import make_method

    clip = copy.copy(clip)
    clip_model = copy.deepcopy(clip.model)
    clip_model.unused = torch.nn.Linear(3, 3)
    object.__setattr__(clip, "model", clip_model)
    method = make_method(name)
    module = method.setup(clip, ["cat", "dog"], ["a {}."])
    method.begin_stage(module, 0)
    method.train_mode(module)
    image, text = torch.randn(4, 3, 24, 24), clip.tokenizer(["a cat.", "a dog."] * 2)
    batch = {"image": image, "text": text, "label": torch.tensor([0, 1, 0, 1])}
    if method.needs_reference:
        frozen = {
            "ref_image_pretrained": torch.randn(4, 32),
            "ref_text_pretrained": torch.randn(4, 32),
        }
        batch |= {"ref_image": image, "ref_text": text, **frozen}
    loss, _ = method.loss(module, batch)
    loss.backward()
    trained = {key for key, p in module.named_parameters() if p.requires_grad}
    without = {key for key, p in module.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()
    assert trained
    assert not any("logit_bias" in key or "unused" in key for key in trained)
    if name != "r-adapter":
        assert len(trained) == len(list(module.model.parameters())) - 3


def test_numbers_of_numpy_and_torch_are_settings():
    import numpy as np

    from robustft.methods import make_method
    from robustft.train import TrainConfig

    config = TrainConfig(
        batch_size=np.int64(8), lr=np.float64(1e-3), wd=np.float32(0.5), decay_all=np.bool_(True)
    )
    assert type(config.batch_size) is int
    assert type(config.wd) is float
    options = make_method("r-adapter", rank=np.int32(4), ema=torch.tensor(0.5)).identity()
    json.dumps([options, config.identity()])
    assert options["rank"] == 4
    json.dumps(make_method("lp-ft", lp_epochs=np.uint8(3), lp_lr=np.float32(1)).identity())
    json.dumps(make_method("dive", lambda_=np.float16(2)).identity())

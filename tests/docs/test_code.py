"""Every Python block of the pages runs, one after the other, with what the page speaks of at hand:
a tiny model in the place of a large one, a few images in the place of a data set."""

import random

import pytest
import torch
from torch.nn import functional as F

from robustft.methods import METHODS

from .pages import PAGES, blocks, name

pytest.importorskip("open_clip")
pytest.importorskip("accelerate")
# Whole training runs, of minutes on a busy machine.
SLOW = ("docs/training.md", "docs/methods/tpgm.md", "docs/methods/starft.md")
WITH_CODE = [
    pytest.param(page, id=name(page), marks=[pytest.mark.slow] if name(page) in SLOW else [])
    for page in PAGES
    if blocks(page, "python")
]


@pytest.fixture(scope="module")
def world():
    """The names that pages take for granted."""
    from robustft.data import load_dataset
    from robustft.ensemble import VRF
    from robustft.methods import make_method
    from robustft.models import Classifier, copy_clip, load_clip
    from robustft.ops import FeatureBank, kth_distance, mpm_nce
    from robustft.train import TrainConfig, fit

    clip = load_clip("robustft-tiny", "glyphs")
    few = {split: load_dataset("digits", split)._take(range(12)) for split in ("train", "val")}
    train, val = (few[split].preloaded(clip.preprocess_val) for split in ("train", "val"))
    zero_shot = Classifier.zero_shot(clip, train.classnames, train.templates)
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        tuned = Classifier.zero_shot(copy_clip(clip), train.classnames, train.templates)
        with torch.no_grad():
            for weight in tuned.parameters():
                weight.add_(0.01 * weight.std(unbiased=False) * torch.randn_like(weight))
        models.append(tuned)
    torch.manual_seed(0)
    labels = torch.arange(120) % 10
    right = 3.0 * F.one_hot(labels, 10).float()
    features = torch.randn(120, 64)
    finetuned, zeroshot = right + torch.randn(120, 10), right + 2 * torch.randn(120, 10)
    split = (features, finetuned, zeroshot, labels)
    named = ("features", "logits_finetuned", "logits_zeroshot", "labels")
    given = dict(zip(named, split, strict=True))
    return given | {
        "torch": torch,
        "F": F,
        "normalize": F.normalize,
        "FeatureBank": FeatureBank,
        "kth_distance": kth_distance,
        "TrainConfig": TrainConfig,
        "make_method": make_method,
        "fit": fit,
        "clip": clip,
        "train": train,
        "val": val,
        "validation": val,
        "templates": train.templates,
        "zero_shot": zero_shot,
        "fine_tuned": models[0],
        "probed": Classifier(clip.model, torch.randn(10, 64), None, train.classnames),
        "models": models,
        "images": torch.stack([train[n]["image"] for n in range(4)]),
        "vrf": VRF().fit(*split, **{f"val_{name}": part for name, part in given.items()}),
        "train_features": torch.randn(200, 64),
        "image_features": F.normalize(torch.randn(8, 64), dim=1).requires_grad_(),
        "text_features": F.normalize(torch.randn(8, 64), dim=1).requires_grad_(),
        "scale": torch.tensor(20.0),
        "mpm_nce": mpm_nce,
    }


@pytest.fixture
def place(page, tmp_path, monkeypatch, world):
    """A folder with the files that pages name, large models replaced by the tiny one, and torch's
    processes by one."""
    import torch.distributed as dist
    from PIL import Image

    from robustft import features, models
    from robustft.data import load_reference

    if page.name == "hugging-face.md":
        pytest.importorskip("transformers")
    if page.name == "ops.md":
        pytest.importorskip("numpy", "2")
    monkeypatch.chdir(tmp_path)
    for n in range(4):
        Image.effect_noise((32, 32), 40 + n).save(f"{n}.png")
    rows = "".join(f"{n}.png,a picture of number {n}\n" for n in range(4))
    for table in ("cc3m.csv", "images.csv", "pairs.csv"):
        (tmp_path / table).write_text("path,caption\n" + rows)
    load = models.load_clip
    monkeypatch.setattr(
        models, "load_clip", lambda *_, **more: load("robustft-tiny", "glyphs", **more)
    )
    begin = dist.init_process_group
    monkeypatch.setattr(
        dist,
        "init_process_group",
        lambda *_: begin("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1),
    )
    outputs = collected(world)
    # Methods that a page registers are gone after it.
    monkeypatch.setattr(METHODS, "_known", dict(METHODS._known))
    yield {
        **world,
        "dist": dist,
        "small_clip": small_clip,
        "FeatureStore": lambda: features.FeatureStore(tmp_path / "features"),
        "load_reference": load_reference,
        "loader": [(world["images"], world["clip"].tokenizer(["a", "b", "c", "d"]))],
        **outputs,
    }
    if dist.is_initialized():
        dist.destroy_process_group()


def small_clip():
    """A CLIPModel of random weights, and what stands for its processor."""
    from types import SimpleNamespace

    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    tower["num_attention_heads"] = 2
    config = CLIPConfig(text_config=tower, vision_config={**tower, "image_size": 32})
    tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=1)
    return CLIPModel(config), SimpleNamespace(
        image_processor=CLIPImageProcessor(), tokenizer=tokenizer
    )


def collected(world):
    """Outputs of both models on the validation split, under the names that pages give them."""
    from robustft.evaluate import collect

    finetuned, zeroshot = (collect(world[x], world["val"]) for x in ("fine_tuned", "zero_shot"))
    parts = {"features": finetuned.features, "labels": finetuned.labels}
    parts |= {"logits_finetuned": finetuned.logits, "logits_zeroshot": zeroshot.logits}
    given = {f"val_{name}": world[name] for name in parts}
    both = {"finetuned": finetuned, "zeroshot": zeroshot}
    return both | given | {f"val_{name}": outputs for name, outputs in both.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs(page, place):
    random.seed(0)
    names = dict(place)
    for line, source in blocks(page, "python"):
        code = compile("\n" * line + source, str(page), "exec")
        exec(code, names)

"""Pre-training of the tiny CLIP on the built-in world, from a seed.

    python -m robustft.train.pretrain tiny_glyphs.safetensors

Images and captions are drawn anew for every step. The loss is the symmetric InfoNCE in which
captions that say the same ("the letter k", "a photo of a letter k.") are positives of each other: a
row's target is y / |P|, its positives sharing the mass.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import robustft
from robustft.atomic import replacing
from robustft.data.datasets import ImageDataset
from robustft.data.digits import digit_shifts, digits
from robustft.data.world import PRETRAIN, captions, glyph_batch, inks, letters, phrases
from robustft.errors import InputError
from robustft.models import Classifier, Clip, load_clip
from robustft.models.tiny import TINY_NAME
from robustft.ops import mpm_nce
from robustft.optional import require
from robustft.progress import bar, showing
from robustft.train.schedule import cosine, set_rate
from robustft.train.validate import top1

_MAX_LOGIT_SCALE = math.log(100)


def pretrain(
    out_path: str | Path | None,
    *,
    seed: int = 0,
    steps: int = 3600,
    batch_size: int = 256,
    lr: float = 2e-3,
    wd: float = 0.05,
    warmup: int = 150,
    evaluate: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the tiny CLIP from scratch and write it to `out_path` (safetensors, fp16 weights).

    Returns {"loss": [one float a step], "seconds", "accuracy": {name: top-1}, ...}. The accuracies
    are zero-shot, of the weights as written; `evaluate=False` leaves them out, and `out_path` None
    writes nothing. The same seed on the same machine with as many threads gives the same file.
    Errors: InputError for settings that cannot be trained with.
    """
    if steps < 1 or batch_size < 2 or warmup < 0 or lr <= 0:
        raise InputError(
            f"steps, batch_size, warmup, lr: got {steps}, {batch_size}, {warmup} and {lr}, "
            "expected at least 1, 2 and 0, and lr above 0"
        )
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        clip = load_clip(TINY_NAME)
    model: Any = clip.model
    tokenize = _Tokens(clip.tokenizer)
    mean, std = (
        torch.tensor(model.visual.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std")
    )
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    other = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": wd}, {"params": other, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
    )

    losses = []
    with showing(progress):
        counted = bar("pretrain", steps, "step")
    model.train()
    for step in range(steps):
        glyphs = glyph_batch(batch_size, (PRETRAIN, seed, step))
        said = phrases(glyphs, (PRETRAIN, seed, step))
        meaning = _distinct(said)[1]
        texts, which = _distinct(captions(said, (PRETRAIN, seed, step)))
        pixels = torch.from_numpy(glyphs.images).movedim(-1, 1).float() / 255
        image = model.encode_image((pixels - mean) / std, normalize=True)
        text = model.encode_text(tokenize(texts), normalize=True)[which]
        loss = mpm_nce(image, text, meaning, meaning, logit_scale=model.logit_scale.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_rate(optimizer, cosine(step, lr=lr, warmup=warmup, steps=steps))
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        losses.append(loss.item())
        if step % 20 == 0:
            counted.set_postfix(loss=f"{losses[-1]:.3f}")
        counted.update()
    counted.close()

    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() for key, value in state.items()})
    model.eval()
    accuracy = {
        dataset.name if dataset.split != "val" else f"{dataset.name}-val": zero_shot_top1(
            clip, dataset
        )
        for dataset in (_evaluation_sets(seed) if evaluate else ())
    }
    if out_path is not None:
        about = {
            "model": TINY_NAME,
            "robustft": robustft.__version__,
            "seed": seed,
            "steps": steps,
            "batch_size": batch_size,
            "lr": lr,
            "wd": wd,
            "warmup": warmup,
        }
        # One entry: safetensors writes several in an order that changes from run to run.
        metadata = {"robustft": json.dumps(about)}
        with replacing(out_path) as temporary:
            require("safetensors.torch", extra="openclip").save_file(state, temporary, metadata)
    return {
        "loss": losses,
        "seconds": time.perf_counter() - start,
        "accuracy": accuracy,
        "seed": seed,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def zero_shot_top1(clip: Clip, dataset: ImageDataset) -> float:
    """Top-1 of class prototypes, each the mean over the dataset's own templates."""
    classifier = Classifier.zero_shot(clip, dataset.classnames, dataset.templates or ["{}"])
    seen = dataset.preloaded(clip.preprocess_val)
    return top1(classifier, seen, batch_size=256, device="cpu")


def _evaluation_sets(seed: int) -> list[ImageDataset]:
    plain = [digits("val", seed), digits("test", seed)]
    return [*plain, *digit_shifts(seed).values(), letters(seed=seed), inks(seed=seed)]


def _distinct(texts: list[str]) -> tuple[list[str], Tensor]:
    """The distinct texts, and for each given text its place among them: a batch repeats many."""
    place: dict[str, int] = {}
    which = [place.setdefault(text, len(place)) for text in texts]
    return list(place), torch.tensor(which)


class _Tokens:
    """A tokenizer that remembers: captions recur, and cleaning each costs 50 µs."""

    def __init__(self, tokenizer: Callable[[list[str]], Tensor]) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, Tensor] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        new = [text for text in texts if text not in self.known]
        if new:
            self.known.update(zip(new, self.tokenizer(new), strict=True))
        return torch.stack([self.known[text] for text in texts])


def _main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train the tiny CLIP on the built-in world.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    given = vars(parser.parse_args())
    result = pretrain(given.pop("out"), **given)
    for name, value in result["accuracy"].items():
        print(f"{name:20s} {value:.3f}")
    print(f"{result['parameters']} parameters, {result['seconds']:.0f} s")


if __name__ == "__main__":
    _main()

"""What a training run would do: its steps, an estimate of its memory, its data, what is published.

Memory is estimated, not measured: weights 4 bytes; of trained ones as much again for gradients and
twice that for AdamW's moments; activations 34 bytes a token, width and layer in 16 bits (arXiv
2205.05198, attention matrices not kept), twice that in float32.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from robustft import recipes
from robustft.cli import materials, named, sets
from robustft.cli.train_options import TrainOptions
from robustft.data.captioned import CaptionedDataset
from robustft.errors import InputError
from robustft.methods import Method
from robustft.models.clip import TINY_NAME as TINY
from robustft.models.sites import find_sites
from robustft.optional import require
from robustft.train import processes

_ACTIVATIONS = 34  # bytes a token, width and layer


@dataclass(frozen=True)
class Size:
    """Parameters of the model, those that are trained, and activations of a batch in bytes."""

    parameters: int
    trained: int
    activations: int

    @property
    def state(self) -> int:
        """Bytes of weights, gradients and moments."""
        return 4 * self.parameters + 12 * self.trained


def print_plan(options: TrainOptions) -> bool:
    """Print the plan of a run; returns whether all its data are there. Nothing is trained."""
    recipe = None if options.recipe is None else recipes.load(options.recipe)
    method = materials.method_of(options)
    print(f"{options.method}, {options.model} ({options.pretrained or 'random weights'})")
    if recipe is not None:
        print(f"recipe {recipe.name}: {recipe.title}")
    found, images = _print_data(options, method)
    _print_steps(options, method, images)
    _print_memory(options, method)
    if recipe is not None:
        _print_published(recipe)
    return found


def _print_data(options: TrainOptions, method: Method) -> tuple[bool, int | None]:
    """What of the data is there: whether all is, and how many training images or pairs."""
    print("data")
    images: int | None = None
    complete = True
    for split in ("train", "val"):
        try:
            data = materials.load_split(options, split, None)
        except InputError as error:
            complete = False
            print(f"  {split}: missing: {error}")
            continue
        if isinstance(data, CaptionedDataset):
            rows, classes = len(data.texts), ""
        else:
            rows, classes = len(data), f", {len(data.classnames):,} classes"
        images = rows if split == "train" else images
        print(f"  {split}: {data.held}{classes} of {data.name}")
    asked = named.asked_for(options.eval_datasets, options.id, options.ood, options.zero_shot)
    if not options.eval_datasets:
        own = sets.default_sets(options.data_location, asked, seed=options.seed)
        asked = sorted([*asked, *(one for one, _ in own)], key=named.by_role)
    for one in asked:
        complete &= _print_set(options, one)
    if method.needs_reference:
        complete &= _print_reference(options)
    return complete, images


def _print_set(options: TrainOptions, one: named.Asked) -> bool:
    role = {"forgetting": "zero-shot", None: "test"}.get(one.role, one.role)
    try:
        data = sets.load_one(one, seed=options.seed, val_fraction=options.val_fraction)
    except InputError as error:
        print(f"  {role}: missing: {error}")
        return False
    if one.first is not None and one.first < len(data):
        data = data.subset(range(one.first), split="test")
    print(f"  {role}: {data.held} of {data.name}")
    return True


def _print_reference(options: TrainOptions) -> bool:
    from robustft.data import load_reference

    try:
        if options.reference is None:
            raise InputError("--reference: got nothing, expected reference pairs")
        pairs = load_reference(options.reference, n=options.reference_samples, seed=options.seed)
    except InputError as error:
        print(f"  reference: missing: {error}")
        return False
    print(f"  reference: {len(pairs):,} pairs of {pairs.name}")
    return True


def _print_steps(options: TrainOptions, method: Method, images: int | None) -> None:
    batch, epochs = options.batch_size or 0, options.epochs or 0
    whole = batch * options.accum_freq * processes.world()
    said = f"steps: batches of {whole}, {epochs} epochs"
    if not method.stages(_config(options)):
        print("steps: none, nothing is trained")
        return
    if images is not None:
        each = images // whole if method.contrastive else math.ceil(images / whole)
        said += f" of {each:,} steps, {each * epochs:,} in all"
    print(f"{said}; learning rate {options.lr:g}, weight decay {options.wd:g}")


def _config(options: TrainOptions) -> Any:
    from robustft.cli.training import check

    return check(options, "cpu")[1]


def _print_memory(options: TrainOptions, method: Method) -> None:
    try:
        size = estimate(options, method)
    except InputError as error:
        print(f"memory: not estimated: {error}")
        return
    print(
        f"memory, estimated: {_giga(size.state)} of weights and optimiser state "
        f"({size.parameters / 1e6:.1f} M parameters, {size.trained / 1e6:.1f} M trained), "
        f"{_giga(size.activations)} of activations a process"
    )


def estimate(options: TrainOptions, method: Method) -> Size:
    """The size of a run of `method`. Errors: InputError for a model that open_clip has no
    configuration of, or whose blocks are not known."""
    model = _empty_model(options.model)
    parameters = sum(p.numel() for p in model.parameters())
    image = sum(p.numel() for p in model.visual.parameters())
    text = method.head_from_text
    trained = {"zero-shot": 0, "linear-probe": 0}.get(options.method, parameters if text else image)
    if options.method == "r-adapter":
        trained = _adapters(find_sites(model), method.config.adapters())
    if not trained:
        return Size(parameters, 0, 0)
    frozen = parameters * (method.needs_reference or options.method in ("car-ft", "lipsum-ft"))
    batch = options.batch_size or 1
    per_image = _activations(model, ("image", "text") if text else ("image",))
    passes = batch
    if method.needs_reference:
        passes += getattr(method.config, "reference_batch_size", None) or batch
    wide = 2 if options.precision == "fp32" else 1
    return Size(parameters + frozen, trained, wide * passes * per_image)


def _empty_model(name: str) -> Any:
    """The architecture without weights or memory."""
    logging.disable(logging.WARNING)  # it would say that there are no weights
    try:
        if name == TINY:
            from robustft.models import load_clip

            return load_clip(name).model
        open_clip = require("open_clip", extra="openclip")
        if open_clip.get_model_config(name) is None:
            raise InputError(f"--model: got {name!r}, expected a model of open_clip")
        with torch.device("meta"):
            return open_clip.create_model(name, device="meta", pretrained_image=False)
    finally:
        logging.disable(logging.NOTSET)


def _activations(model: Any, towers: Sequence[str]) -> int:
    """Bytes that a backward pass needs of one image and one text, in 16 bits."""
    tokens = {"image": _image_tokens(model), "text": int(getattr(model, "context_length", 77))}
    # A block has two sites, of attention and MLP.
    return sum(_ACTIVATIONS * tokens[s.tower] * s.width for s in find_sites(model, towers)) // 2


def _image_tokens(model: Any) -> int:
    position = getattr(model.visual, "positional_embedding", None)
    if position is None:  # timm's towers
        position = getattr(getattr(model.visual, "trunk", None), "pos_embed", None)
    if position is None:
        raise InputError(
            "--model: got an image tower without positions, expected some to count tokens by"
        )
    return int(position.shape[-2])


def _adapters(sites: Sequence[Any], config: Any) -> int:
    total = 0
    for site in sites:
        rank = config.rank_of(site.tower)
        full = rank is None or rank >= site.width
        total += site.width**2 if full else 2 * rank * site.width
        total += config.learn_scale
    return total


def _print_published(recipe: recipes.Recipe) -> None:
    for row in recipe.published:
        figures = ", ".join(f"{name} {value:g}" for name, value in row.figures.items())
        print(f"published: {row.row}: {figures} ({row.source})")
    if not recipe.published:
        print("published: no figure is quoted for this recipe")
    known = [recipe.hardware or "", f"{recipe.hours:g} hours" if recipe.hours else ""]
    if any(known):
        print(f"the published run: {', '.join(filter(None, known))}")
    for text in recipe.departs:
        print(f"departs: {text}")
    print(f"seeds: {', '.join(map(str, recipe.seeds))}")
    for text in recipe.then:
        print(f"then: {text}")


def _giga(count: int) -> str:
    return f"{count / 1e9:.2f} GB"

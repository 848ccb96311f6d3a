"""Activations that are computed twice rather than kept, and towers that are compiled.

grad_cache (Gao et al., arXiv 2101.06983): the towers run over a batch chunk by chunk without
keeping activations, the contrastive loss sees all features at once, and backward runs each chunk
again, with the random numbers and in the mode of its first pass, for the gradients of its features.
Memory is that of one chunk; loss and gradients are those of the whole batch, but for rounding.
grad_checkpointing: as open_clip's, of each transformer block. torchcompile: torch.compile of each
tower. All three are of the training's own copy of a model, and undone in its result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from robustft.errors import InputError
from robustft.models import Clip
from robustft.train.config import TrainConfig
from robustft.train.method import Method

#: torch.compile's.
BACKEND = "inductor"
#: The methods by which a model of images and texts is called.
ENCODERS = ("encode_image", "encode_text")


def check(method: Method, clip: Clip, config: TrainConfig) -> None:
    """Errors: InputError where one of the three is asked for and means nothing, or would change
    what is trained."""
    asked = [name for name in ("grad_checkpointing", "torchcompile") if getattr(config, name)]
    if config.grad_cache is not None:
        asked.insert(0, "grad_cache")
    if not asked:
        return
    if all(stage.frozen_features for stage in method.stages(config)):
        raise InputError(
            f"{asked[0]}: method {method.name} trains no tower, expected one that does"
        )
    if config.grad_cache is not None and not method.contrastive:
        raise InputError(
            f"grad_cache: the loss of {method.name} is a mean over images, expected a contrastive "
            "method; a smaller batch_size with accum_freq gives the same gradients"
        )
    if config.grad_cache is not None and config.grad_cache >= config.batch_size:
        raise InputError(
            f"grad_cache: got {config.grad_cache}, expected less than batch_size "
            f"({config.batch_size})"
        )
    if "torchcompile" in asked and not torch._dynamo.is_dynamo_supported():
        raise InputError("torchcompile: got it where torch.compile does not run, expected neither")
    parts = list(clip.model.modules())
    if asked != ["torchcompile"] and any(isinstance(part, _BatchNorm) for part in parts):
        raise InputError(
            f"{asked[0]}: {clip.name} has batch normalisation, whose statistics a second pass "
            "would change, expected a model without"
        )
    if not config.grad_checkpointing:
        return
    if not hasattr(clip.model, "set_grad_checkpointing"):
        raise InputError(f"grad_checkpointing: {clip.name} has none, expected a model of open_clip")
    if method.needs_validation:
        # TPGM's radii run the model with other weights, which are gone when backward runs it again.
        raise InputError(f"grad_checkpointing: got it with {method.name}, expected another method")
    if method.needs_reference and any(map(_drops, parts)):
        # Reference pairs pass in evaluation mode, and would be computed again in training mode.
        raise InputError(
            f"grad_checkpointing: {clip.name} has dropout, expected a model without for "
            f"{method.name}, or grad_cache"
        )


def _drops(part: nn.Module) -> bool:
    """Whether training mode makes it draw at random."""
    rate = part.p if isinstance(part, _DropoutNd) else getattr(part, "drop_prob", 0.0)
    if isinstance(part, nn.MultiheadAttention):
        rate = part.dropout
    return bool(rate)


def begin(module: nn.Module, config: TrainConfig) -> None:
    """Checkpoint and compile the towers in `module` where the configuration says so."""
    for model in models_in(module):
        if config.grad_checkpointing:
            model.set_grad_checkpointing(True)
        if config.torchcompile:
            for tower in _towers(model):
                tower.compile(backend=BACKEND)


def end(module: nn.Module, config: TrainConfig) -> None:
    """Undo `begin`."""
    for model in models_in(module):
        if config.grad_checkpointing:
            model.set_grad_checkpointing(False)
        if config.torchcompile:
            for tower in _towers(model):
                tower._compiled_call_impl = None


@contextlib.contextmanager
def chunked(module: nn.Module, size: int | None) -> Iterator[None]:
    """Inside, where gradients are asked for, the encoders of the models in `module` take `size`
    rows at a time, and keep the rows alone. None: nothing is changed."""
    with contextlib.ExitStack() as stack:
        for model in [] if size is None else models_in(module):
            for name in ENCODERS:
                stack.enter_context(_replaced(model, name, _in_chunks(model, name, int(size or 1))))
        yield


def _in_chunks(model: Any, name: str, size: int) -> Any:
    whole = getattr(model, name)

    def encode(rows: Tensor, *args: Any, **options: Any) -> Tensor:
        if not torch.is_grad_enabled():
            found: Tensor = whole(rows, *args, **options)
            return found
        modes = [(part, part.training) for part in model.modules()]

        def one(chunk: Tensor) -> Tensor:
            with _in_modes(modes):
                features: Tensor = whole(chunk, *args, **options)
            return features

        return torch.cat([checkpoint(one, part, use_reentrant=False) for part in rows.split(size)])

    return encode


@contextlib.contextmanager
def _in_modes(modes: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Training or evaluation mode of each part as listed, and afterwards as it was."""
    changed = [(part, part.training) for part, mode in modes if part.training != mode]
    for part, before in changed:
        part.training = not before
    try:
        yield
    finally:
        for part, before in changed:
            part.training = before


@contextlib.contextmanager
def _replaced(model: nn.Module, name: str, function: Any) -> Iterator[None]:
    """The model's own attribute `name` is `function` inside."""
    before = vars(model).get(name)
    vars(model)[name] = function
    try:
        yield
    finally:
        if before is None:
            del vars(model)[name]
        else:
            vars(model)[name] = before


def models_in(module: nn.Module) -> list[Any]:
    """The models of images and texts in `module`."""
    return [m for m in module.modules() if all(hasattr(m, name) for name in ENCODERS)]


def _towers(model: Any) -> list[nn.Module]:
    """The image tower, and the text tower or, where a model has it in parts, its transformer."""
    found = [getattr(model, name, None) for name in ("visual", "text", "transformer")]
    return [part for part in found if isinstance(part, nn.Module)]

"""What a fine-tuning method tells the training loop."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustft.models import Classifier, Clip, evaluating
from robustft.train import checks
from robustft.train.config import Stage, TrainConfig
from robustft.train.published import Published


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """For a method without hyper-parameters of its own."""


#: The kinds of methods, in the order of tables.
GROUPS = ("fine-tuning", "regularised", "adapters")


class Method(ABC):
    """A fine-tuning method: what is trained, on which loss, and what the result is.

    A method holds its hyper-parameters (`config`, a frozen dataclass) and no state: all that
    training changes lives in the module that `setup` makes. The loop may wrap that module for
    mixed precision or several processes, so `loss` only ever calls it; the other functions get it
    unwrapped.
    """

    name: ClassVar[str]
    #: Its name in tables and plots, and its colour there.
    display: ClassVar[str]
    colour: ClassVar[str]
    #: What robust methods are measured against; such methods come first in tables.
    baseline: ClassVar[bool] = False
    #: What kind of method it is: one of GROUPS.
    group: ClassVar[str] = "fine-tuning"
    options: ClassVar[type[Any]] = NoOptions
    #: Hyper-parameters for the demo's short runs, where the defaults are meant for long ones.
    demo: ClassVar[Mapping[str, Any]] = {}
    #: Settings of a run where the user names none.
    published: ClassVar[Published]
    #: Whether `classifier` makes its head from the tuned text tower. What mixes the weights of two
    #: such models makes the mixture's head in the same way.
    head_from_text: ClassVar[bool]
    #: Ensembles with the zero-shot model that make sense of its result.
    ensembles: ClassVar[tuple[str, ...]] = ("wise-ft", "ose", "vrf")
    #: Batches carry "text" [B, L], a caption each.
    needs_captions: ClassVar[bool] = False
    #: It trains as well on images with captions and no classes; "label" then tells the image, and
    #: its `classifier` has no class.
    takes_pairs: ClassVar[bool] = False
    #: Batches carry "ref_image" [B', 3, H, W] and "ref_text" [B', L];
    #: `config.reference_batch_size` is B', or None for the batch size.
    needs_reference: ClassVar[bool] = False
    #: And of these kinds the frozen model's raw features, "ref_text_pretrained" [B', D] and, unless
    #: the images are augmented, "ref_image_pretrained".
    reference_features: ClassVar[tuple[str, ...]] = ("image", "text")
    #: Each step's last batch carries "val_image" [B, 3, H, W] and "val_label" [B] out of the ID
    #: validation split, a part of its own on each process.
    needs_validation: ClassVar[bool] = False
    #: Incomplete batches are left out: their negatives would be fewer.
    contrastive: ClassVar[bool] = False
    #: Its loss and steps take weights that are spread over processes (parallel="fsdp").
    shardable: ClassVar[bool] = False

    #: What `save_parts` writes into a run folder.
    parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        self.config: Any = checks.build(self.options, options, what=f"method {self.name}")

    def stages(self, config: TrainConfig) -> list[Stage]:
        """The parts of a run, in order; none for a method that trains nothing."""
        return [Stage.of(self.name, config)]

    @abstractmethod
    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        """The trainable module, made from a copy of `clip`; `clip` itself is left as it is."""

    def begin_stage(self, module: nn.Module, stage: int) -> None:  # noqa: B027 (most need none)
        """Set what requires gradients in stage number `stage`."""

    def train_mode(self, module: nn.Module) -> None:
        """Put the module into the mode in which it is trained."""
        module.train()

    @abstractmethod
    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (a scalar) and detached values for the log.

        `batch` has "image" [B, 3, H, W] (or "features" [B, D] in a stage with frozen features) and
        "label" [B], and what `needs_captions` and `needs_reference` promise.
        """

    @property
    def same_draws(self) -> bool:
        """Whether all processes draw the same random numbers in a step, so that n of them train as
        one does; these must then not depend on how many images a process has."""
        return False

    def begin_step(self, module: nn.Module, epoch: int, epochs: int) -> None:  # noqa: B027
        """What precedes each step: it is one of `epoch` (from 0 on) of the stage's `epochs`."""

    def after_step(self, module: nn.Module) -> None:  # noqa: B027 (most need none)
        """What follows each optimiser step."""

    @abstractmethod
    def classifier(self, module: nn.Module) -> Classifier:
        """The module as a classifier. It may share weights with the module."""

    def save_parts(self, module: nn.Module, run_dir: Path) -> None:  # noqa: B027 (most have none)
        """Write beside the result, under the names in `parts`, what `classifier` makes it from,
        where it can be made otherwise after training."""

    def rebuild(
        self, run_dir: Path, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]
    ) -> Callable[[float], Classifier] | None:
        """From what `save_parts` wrote, the classifier of each strength α in [0, 1]: 0 is the
        zero-shot model. None for a method without such parts.

        `clip` is the pre-trained model and is left as it is.
        """
        return None

    def param_groups(self, module: nn.Module, wd: float) -> list[dict[str, Any]]:
        """AdamW's groups: weight decay on matrices, none on biases, norms and scalars."""
        trained = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": wd},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def identity(self) -> dict[str, Any]:
        """Name and hyper-parameters: what a checkpoint must share with the run resuming it."""
        return {"name": self.name, **dataclasses.asdict(self.config)}


def freeze(module: nn.Module) -> None:
    """No parameter of `module` requires a gradient."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def freeze_unseen(module: nn.Module, outputs: Callable[[], Tensor]) -> None:
    """Freeze what `outputs()`, all that the loss sees (any shape), does not depend on.

    An optimiser's weight decay would move such parameters, and DistributedDataParallel waits for
    their gradients in vain.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    with evaluating(module), torch.enable_grad():
        gradients = torch.autograd.grad(outputs().sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def unfreeze(module: nn.Module) -> None:
    """Every parameter of `module` requires a gradient."""
    for parameter in module.parameters():
        parameter.requires_grad_(True)

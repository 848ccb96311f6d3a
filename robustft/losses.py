"""The losses as nn.Modules, called as open_clip's are: loss(image, text, logit_scale)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustft.errors import InputError
from robustft.ops import _checks
from robustft.ops._ranks import Ranks
from robustft.ops.dive import dive_loss
from robustft.ops.mpm_nce import KEEP_LOGITS, mpm_nce


class CLIPLoss(nn.Module):
    """CLIP's symmetric InfoNCE on a paired batch, in the place of open_clip.loss.ClipLoss.

    The constructor takes ClipLoss's arguments. With world_size above 1 the batch is that of all
    ranks of torch.distributed's default group, or of `group`, and may be of unequal parts. Values
    and gradients are those of the whole batch (see `robustft.ops.mpm_nce`) whatever local_loss
    and gather_with_grad are: open_clip's gradients are these too where it gathers with gradients.

    exchange: "gather" or "ring", how features reach the other ranks (`robustft.ops.mpm_nce`), here
    and below. keep_logits: bytes that may be kept for the backward pass. `use_horovod` and
    `cache_labels` are there to be accepted. Features are float32, bfloat16 or float16, the loss is
    float32. backend: "auto", or the name of one (`robustft doctor` lists them), here and below.

    Errors: InputError for Horovod, for a rank or world_size that is not the group's, and, when it
    is called, for shapes and dtypes that do not fit together.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        group: Any = None,
        exchange: str = "gather",
        keep_logits: int = KEEP_LOGITS,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if use_horovod:
            raise InputError("use_horovod: got True, expected torch.distributed's processes")
        self.group = _group_of(rank, world_size) if group is None else group
        self.exchange = exchange
        self.keep_logits = keep_logits
        self.backend = backend

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The scalar loss of normalised image_features and text_features [B, D], at logit_scale =
        1/τ; with output_dict it is {"contrastive_loss": loss}.

        logit_bias shifts every logit alike, which a softmax does not see: it is accepted, unused.
        """
        loss = mpm_nce(
            image_features,
            text_features,
            logit_scale=_scalar(logit_scale),
            group=self.group,
            exchange=self.exchange,
            keep_logits=self.keep_logits,
            backend=self.backend,
        )
        return {"contrastive_loss": loss} if output_dict else loss


class MPMNCELoss(nn.Module):
    """R-Adapter's multi-positive margin NCE (arXiv 2408.05749); see `robustft.ops.mpm_nce`.

    Args:
        margin: δ added to the similarity of negatives (0.05 in the paper).
        label_smoothing: ε given to the negatives (0.02 in the paper's code).
        symmetric: both directions, or only images over texts.
        ignore_index: rows of this label are no anchors.
        group: torch.distributed's ProcessGroup over whose ranks a batch is spread, or None.
        keep_logits: bytes that may be kept for the backward pass.
        exchange, backend: as in `CLIPLoss`.

    Errors: InputError for a margin that is not finite or a label_smoothing outside [0, 1]; when it
    is called, for shapes and dtypes that do not fit together.
    """

    def __init__(
        self,
        margin: float = 0.05,
        label_smoothing: float = 0.02,
        symmetric: bool = True,
        *,
        ignore_index: int = -100,
        group: Any = None,
        exchange: str = "gather",
        keep_logits: int = KEEP_LOGITS,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.margin = _checks.finite("margin", margin)
        self.label_smoothing = _checks.unit_interval("label_smoothing", label_smoothing)
        self.symmetric = symmetric
        self.ignore_index = _checks.integer("ignore_index", ignore_index)
        self.group = group
        self.exchange = exchange
        self.keep_logits = keep_logits
        self.backend = backend

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        image_labels: Tensor | None = None,
        text_labels: Tensor | None = None,
        mask: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The scalar loss (float32), or with output_dict {"contrastive_loss": loss}.

        image_features [B, D] and text_features [C, D] are normalised, float32, bfloat16 or float16;
        logit_scale is 1/τ. image_labels [B] and text_labels [C], integers, or mask [B, C], boolean,
        say which pairs are positive; without them B = C and pairs are on the diagonal.
        """
        loss = mpm_nce(
            image_features,
            text_features,
            image_labels,
            text_labels,
            logit_scale=_scalar(logit_scale),
            margin=self.margin,
            label_smoothing=self.label_smoothing,
            symmetric=self.symmetric,
            mask=mask,
            ignore_index=self.ignore_index,
            group=self.group,
            exchange=self.exchange,
            keep_logits=self.keep_logits,
            backend=self.backend,
        )
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, label_smoothing={self.label_smoothing}, "
            f"symmetric={self.symmetric}"
        )


class SupConLoss(nn.Module):
    """The supervised contrastive loss of Khosla et al. (arXiv 2004.11362), its L_out.

    The mean, over the rows that share their label with another row, of

        −1/P_i Σ_p log( exp(<z_i, z_p>/τ) / Σ_{a ≠ i} exp(<z_i, z_a>/τ) )

    with p over the P_i other rows of row i's label.

    Args:
        temperature: τ.
        ignore_index: a row of this label is no anchor and no positive, but still a candidate.
        group: torch.distributed's ProcessGroup over whose ranks a batch is spread, or None.
        keep_logits: bytes that may be kept for the backward pass.
        exchange, backend: as in `CLIPLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        ignore_index: int = -100,
        group: Any = None,
        exchange: str = "gather",
        keep_logits: int = KEEP_LOGITS,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.temperature = _checks.positive("temperature", temperature)
        self.ignore_index = _checks.integer("ignore_index", ignore_index)
        self.group = group
        self.exchange = exchange
        self.keep_logits = keep_logits
        self.backend = backend

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss of features [B, D], normalised before, and integer labels [B].

        Errors: InputError where no two rows share a label (on the CPU; elsewhere NaN).
        """
        return mpm_nce(
            features,
            features,
            labels,
            labels,
            logit_scale=1 / self.temperature,
            symmetric=False,
            exclude_self=True,
            ignore_index=self.ignore_index,
            group=self.group,
            exchange=self.exchange,
            keep_logits=self.keep_logits,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class NTXentLoss(SupConLoss):
    """SimCLR's normalised temperature-scaled cross-entropy (arXiv 2002.05709).

    Of two views of B samples: SupConLoss of the 2·B rows, whose labels say of which sample they
    are. Each row's only positive is the other view, its candidates are all rows but itself.

    Args:
        temperature: τ (0.5 is SimCLR's on CIFAR-10).
        group: torch.distributed's ProcessGroup over whose ranks a batch is spread, or None. Both
            views of a sample are on one rank.
        keep_logits: bytes that may be kept for the backward pass.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        group: Any = None,
        exchange: str = "gather",
        keep_logits: int = KEEP_LOGITS,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            temperature, group=group, exchange=exchange, keep_logits=keep_logits, backend=backend
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The scalar loss of two views' features, first and second [B, D], normalised before.

        Errors: InputError for shapes or dtypes that do not fit together.
        """
        _checks.matrix("first", first, rows="B")
        _checks.matrix("second", second, rows="B", like=first)
        samples = torch.arange(len(first), device=first.device)
        if self.group is not None:  # each rank's samples are others
            samples += Ranks(self.group).rank << 40
        return super().forward(torch.cat([first, second]), torch.cat([samples, samples]))


class DiVELoss(nn.Module):
    """DiVE's average and pairwise vector losses (arXiv 2511.09973), with the average they keep.

    The average difference vector is the buffer `mean` [dim]. It is kept in float32 whatever the
    module is cast to, saved with the state dict, moved on by every call in training mode, and
    held where it is in evaluation mode.

    Args:
        momentum: how slowly it moves; 0 takes the batch's own mean.
        normalize: take differences of unit features, or of features as they come.
        group: torch.distributed's ProcessGroup over whose ranks a batch is spread, or None; the
            average is then the same on all of them.
        backend: as in `CLIPLoss`.

    Errors: InputError for dim below 1 or a momentum outside [0, 1]; when it is called, for shapes
    and dtypes that do not fit together.
    """

    mean: Tensor

    def __init__(
        self,
        dim: int,
        momentum: float = 0.99,
        normalize: bool = True,
        *,
        group: Any = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        dim = _checks.integer("dim", dim)
        if dim < 1:
            raise InputError(f"dim: got {dim}, expected a number above 0")
        self.momentum = _checks.unit_interval("momentum", momentum)
        self.normalize = normalize
        self.group = group
        self.backend = backend
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float32))

    def forward(
        self,
        image: Tensor,
        image_pretrained: Tensor,
        text: Tensor,
        text_pretrained: Tensor,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """(AVL, PVL), scalars, of one reference batch; with output_dict the two by name.

        image, text: features [B, dim] of the model that is tuned; image_pretrained,
        text_pretrained: of the frozen one; float32, bfloat16 or float16.
        """
        avl, pvl, new_mean = dive_loss(
            image,
            image_pretrained,
            text,
            text_pretrained,
            self.mean,
            momentum=self.momentum if self.training else 1.0,
            normalize=self.normalize,
            group=self.group,
            backend=self.backend,
        )
        if self.training:
            with torch.no_grad():
                self.mean.copy_(new_mean)
        return (
            {"average_vector_loss": avl, "pairwise_vector_loss": pvl} if output_dict else (avl, pvl)
        )

    def extra_repr(self) -> str:
        return f"{len(self.mean)}, momentum={self.momentum}, normalize={self.normalize}"

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> DiVELoss:
        # .half() would round the mean, whose steps are one hundredth of it, to nothing.
        mean = self.mean
        super()._apply(fn, recurse)
        if self.mean.dtype != torch.float32:
            self.mean = mean.to(self.mean.device)
        return self


def all_ranks() -> Any:
    """torch.distributed's default group where it is of several processes, else None: the `group` of
    a loss in a training loop, whatever started it."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if several else None


def _group_of(rank: int, world_size: int) -> Any:
    """torch.distributed's default group, if it is of several processes and this is the rank."""
    started = dist.is_available() and dist.is_initialized()
    here = (dist.get_rank(), dist.get_world_size()) if started else (0, 1)
    if (rank, world_size) == (0, 1):
        return None
    if (rank, world_size) != here:
        raise InputError(
            f"world_size: got {world_size} (rank {rank}), expected {here[1]} (rank {here[0]}) as "
            "torch.distributed has it"
        )
    return dist.group.WORLD


def _scalar(logit_scale: Tensor | float) -> Tensor | float:
    """open_clip can hold its logit scale as a tensor of shape [1]."""
    if isinstance(logit_scale, Tensor) and logit_scale.shape == (1,):
        return logit_scale.reshape(())
    return logit_scale

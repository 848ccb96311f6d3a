"""WiSE-FT: one model, between the zero-shot and the fine-tuned one in weight space.

θ_α = (1-α)·θ_zs + α·θ_ft        on all weights, encoder and head (arXiv 2109.01903)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robustft.ensemble._checks import check_alpha, check_same_classes

if TYPE_CHECKING:
    from robustft.models.heads import Classifier


def wise_ft(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    alpha: float,
    *,
    rebuild: tuple[Any, Sequence[Any]] | None = None,
) -> Classifier:
    """A new classifier with interpolated weights; neither argument is changed.

    Args:
        zero_shot, fine_tuned: classifiers of one architecture and one list of classes.
        alpha: 0 gives the zero-shot weights, 1 the fine-tuned ones, bit for bit.
        rebuild: (tokenizer, templates) re-makes the head from the interpolated text tower, the
            choice for methods whose head is the text tower (FLYP, R-Adapter, DiVE). Without it
            the two heads are interpolated.

    Errors: InputError for alpha outside [0, 1], other classes, or another architecture.
    """
    from robustft.models.weights import interpolate

    alpha = check_alpha(alpha)
    check_same_classes("fine_tuned", fine_tuned.classnames, "zero_shot", zero_shot.classnames)
    mixed = interpolate(zero_shot.state_dict(), fine_tuned.state_dict(), alpha)
    result = copy.deepcopy(fine_tuned)
    result.load_state_dict(mixed)
    if rebuild is not None:
        tokenizer, templates = rebuild
        result.rebuild_head(tokenizer, templates)
    return result

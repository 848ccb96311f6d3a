"""What VRF is fitted to: the failures V, both temperatures, and a and b on validation data."""

from __future__ import annotations

from torch import Tensor

from robustft.accuracy import correct
from robustft.ensemble import vrf_release
from robustft.ensemble._checks import HasSplit, Samples, check_selection_split
from robustft.ensemble.calibrate import matching_temperature
from robustft.ensemble.select import check_same_samples
from robustft.ensemble.vrf_select import Modulation, choose_modulation


def samples_of(
    finetuned: HasSplit,
    zeroshot: HasSplit,
    features: Tensor,
    prefix: str,
    *,
    reported: bool = False,
) -> Samples:
    """Both models' outputs of one split, with the features [N, D] that distances are taken in.

    reported: whether they may be those of a test split. Errors: InputError, with `prefix` before
    the names, where they may not and are, or where the samples of the two differ.
    """
    if not reported:
        check_selection_split(f"{prefix}finetuned", finetuned)
        check_selection_split(f"{prefix}zeroshot", zeroshot)
    check_same_samples(finetuned, zeroshot)
    return Samples(features, finetuned.logits, zeroshot.logits, finetuned.labels)


def is_failure(train: Samples) -> Tensor:
    """Whether the fine-tuned model is right and the zero-shot model wrong, bool [N] on the CPU."""
    right = correct(train.logits_finetuned, train.labels)
    wrong = ~correct(train.logits_zeroshot, train.labels)
    return right.cpu() & wrong.cpu()


def temperatures(val: Samples, *, as_released: bool) -> tuple[float, float]:
    """(fine-tuned, zero-shot): at which each model's mean confidence is its accuracy."""
    solve = vrf_release.released_temperature if as_released else matching_temperature
    return solve(val.logits_finetuned, val.labels), solve(val.logits_zeroshot, val.labels)


def modulation(
    distance: Tensor, val: Samples, temperatures: tuple[float, float], *, space: str, omega: str
) -> Modulation:
    """a and b, chosen at the validation samples' distances [N], on whose device it is done."""
    finetuned, zeroshot = (
        logits.to(distance.device).float() / temperature
        for logits, temperature in zip(
            (val.logits_finetuned, val.logits_zeroshot), temperatures, strict=True
        )
    )
    if space == "probability":
        finetuned, zeroshot = finetuned.softmax(dim=1), zeroshot.softmax(dim=1)
    labels = val.labels.to(distance.device)
    return choose_modulation(distance, finetuned, zeroshot, labels, omega)

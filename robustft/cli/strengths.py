"""A run's result at other strengths of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from robustft.cli import materials, runs

if TYPE_CHECKING:
    from robustft.models import Classifier


def strengths(run: runs.Run) -> tuple[Callable[[float], Classifier], dict[str, Any]]:
    """The run's classifier as a function of its strength, and the result lines' `method` and
    `base`: its adapters' own where its method has one, else WiSE-FT's mix."""
    from robustft.ensemble.wise_ft import wise_ft

    method = materials.method_of(run.options)
    at = method.rebuild(run.folder, run.clip, run.train.classnames, run.templates)
    if at is not None:
        return at, {"method": method.name}
    runs.check_ensemble(run, "wise-ft")
    mixed = partial(wise_ft, run.zero_shot, run.fine_tuned, rebuild=run.rebuild)
    return mixed, {"method": "wise-ft", "base": method.name}

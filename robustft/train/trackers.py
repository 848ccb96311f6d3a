"""A run's numbers in TensorBoard, Weights & Biases and Trackio, through Accelerate's trackers.

TensorBoard's events lie in the run folder. Where the others send theirs is their own affair: wandb
goes by its environment (with WANDB_MODE=offline all stays in the run folder), Trackio keeps its own
on this machine. A resumed run goes on as the same run. Of steps that were sent before it was killed
and are made anew, TensorBoard drops the old ones; to wandb and Trackio, which tell how far they
have the run, nothing is sent twice.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustft.atomic import write_text
from robustft.errors import InputError
from robustft.optional import MissingExtraError, install_hint, require
from robustft.train.accelerator import state_for_trackers
from robustft.train.config import TRACKERS

#: Holds what trackers know the run by.
FILE = "tracked-as"


def check(names: Sequence[str]) -> None:
    """Errors: MissingExtraError for a tracker that is not installed."""
    for name in names:
        require(name, extra=TRACKERS[name])
        if name not in _kinds():
            hint = install_hint(TRACKERS[name])
            raise MissingExtraError(f"accelerate is too old for {name}: {hint}")


class Trackers:
    """Those of `names`, open for one run; its main process makes them.

    folder: the run's; resumed_at: the step that it starts from; settings: of the run, plain values.

    Errors: MissingExtraError; InputError for a tracker that does not begin, with its reason.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, *, resumed_at: int, settings: Mapping[str, Any]
    ) -> None:
        check(names)
        self._step = resumed_at
        self._all: list[Any] = []
        self._reached: dict[str, int] = {}
        if names:
            with state_for_trackers():
                self._begin(names, folder, settings)

    def _begin(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        known = {key: _plain(value) for key, value in settings.items()}
        options = _options(folder, _identity(folder, self._step), self._step, known)
        project = os.environ.get("WANDB_PROJECT") or "robustft"
        for name in names:
            place = ("tensorboard", str(folder)) if name == "tensorboard" else (project,)
            try:
                tracker = _kinds()[name](*place, **options[name])
                if hasattr(tracker, "start"):  # older ones have begun when they are made
                    tracker.start()
            except Exception as error:  # no account, no network: each has errors of its own
                reason = " ".join(str(error).split())
                raise InputError(f"report_to: {name} does not begin: {reason}") from error
            if name == "tensorboard" and not self._step:
                tracker.store_init_configuration(known)
            self._all.append(tracker)
            self._reached[tracker.name] = _next_step(tracker)

    def log(
        self, values: Mapping[str, Any], step: int | None = None, *, again: bool = False
    ) -> None:
        """The numbers among `values`, at `step`, or at the last one. again: these were sent before
        the run was stopped, if they were not lost on the way."""
        self._step = self._step if step is None else step
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if numbers and self._all:
            with state_for_trackers():
                for tracker in self._all:
                    if not (again and self._step < self._reached[tracker.name]):
                        tracker.log(numbers, step=self._step)

    def close(self) -> None:
        """Send what is left. Doing it twice changes nothing."""
        if self._all:
            with state_for_trackers():
                while self._all:
                    self._all.pop().finish()


def _next_step(tracker: Any) -> int:
    """The step that follows those which a tracker has of the run; 0 where it does not tell."""
    run = getattr(tracker, "run", None)
    found = (getattr(run, name, None) for name in ("step", "_next_step"))  # wandb's, Trackio's
    return max((step for step in found if isinstance(step, int)), default=0)


def _kinds() -> dict[str, Any]:
    kinds: dict[str, Any] = require("accelerate.tracking", extra="train").LOGGER_TYPE_TO_CLASS
    return kinds


def _options(
    folder: Path, identity: str, resumed_at: int, settings: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """What each tracker is made with. Settings are given here, and each time: Trackio keeps none
    that come later, and of a resumed run those of its last start."""
    return {
        "tensorboard": {"purge_step": resumed_at + 1},
        "wandb": {
            "name": folder.name,
            "id": identity,
            "dir": str(folder),
            "resume": "allow" if resumed_at else None,
            "config": settings,
        },
        "trackio": {"name": f"{folder.name}-{identity}", "resume": "allow", "config": settings},
    }


def _identity(folder: Path, resumed_at: int) -> str:
    """What the run was called when it began, or a new name."""
    file = folder / FILE
    if resumed_at and file.is_file():
        return file.read_text(encoding="utf-8").strip()
    identity = secrets.token_hex(4)
    write_text(file, identity + "\n")
    return identity


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)

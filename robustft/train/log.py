"""What a run writes down as it goes: log.jsonl, and TensorBoard events on request."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from robustft import jsonlines
from robustft.atomic import write_text
from robustft.optional import require

FILE = "log.jsonl"


class Log:
    """Records of a run, kept in `records` and, with a folder, in its log.jsonl.

    `resumed_at` is the step a resumed run starts from: records of later steps are dropped, since
    the run makes them anew.
    """

    def __init__(self, run_dir: Path | None, *, resumed_at: int, tensorboard: bool) -> None:
        self.records: list[dict[str, Any]] = []
        self._path = None if run_dir is None else run_dir / FILE
        self._events: Any = None
        if self._path is not None and self._path.is_file():
            lines = jsonlines.read(self._path, skip_broken=True)
            found = [r for _, r in lines if isinstance(r, dict)]
            self.records = [r for r in found if r.get("step", 0) <= resumed_at]
            write_text(self._path, "".join(json.dumps(r) + "\n" for r in self.records))
        if run_dir is not None and tensorboard:
            require("tensorboard", extra="train")
            events = require("torch.utils.tensorboard", extra="train")
            self._events = events.SummaryWriter(
                str(run_dir / "tensorboard"), purge_step=resumed_at + 1
            )

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One record. `step` counts the optimiser steps of the whole run.

        A number that is not finite becomes null, since JSON has no NaN.
        """
        values = {name: _plain(value) for name, value in values.items()}
        record = {"step": step, **values}
        self.records.append(record)
        if self._path is not None:
            jsonlines.append(self._path, record)
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush what is buffered."""
        if self._events is not None:
            self._events.close()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

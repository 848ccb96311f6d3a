"""What a run writes down as it goes: log.jsonl, and what it sends to trackers on request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustft import jsonlines
from robustft.atomic import write_text
from robustft.evaluate.results import GEOMETRY
from robustft.train.trackers import Trackers

FILE = "log.jsonl"


class Log:
    """Records of a run, kept in `records` and, with a folder, in its log.jsonl.

    `resumed_at` is the step a resumed run starts from: records of later steps are dropped, since
    the run makes them anew. report_to: trackers (robustft.train.trackers), and settings what they
    are to know of the run; none without a folder, as on processes that are not the main one.
    """

    def __init__(
        self,
        run_dir: Path | None,
        *,
        resumed_at: int,
        report_to: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self._path = None if run_dir is None else run_dir / FILE
        self._trackers: Trackers | None = None
        self._made: set[Any] = set()  # what is made anew
        if self._path is not None and self._path.is_file():
            lines = jsonlines.read(self._path, skip_broken=True)
            found = [r for _, r in lines if isinstance(r, dict)]
            self.records = [r for r in found if r.get("step", 0) <= resumed_at]
            self._made = {_key(r) for r in found if r.get("step", 0) > resumed_at}
            write_text(self._path, "".join(json.dumps(r) + "\n" for r in self.records))
        if run_dir is not None and report_to:
            self._trackers = Trackers(
                report_to, run_dir, resumed_at=resumed_at, settings=settings or {}
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
        if self._trackers is not None:
            self._trackers.log(values, step, again=_key(record) in self._made)

    def results(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Send the measures of result lines (robustft.evaluate.results) to the trackers, as
        "result/<dataset>:<measure>" at the last step. They are no part of log.jsonl."""
        if self._trackers is None:
            return
        values: dict[str, Any] = {}
        for line in lines:
            name = line["dataset"]
            for key, value in line.items():
                if key.startswith(f"{name}:"):
                    values[f"result/{key}"] = value
                elif key in GEOMETRY:
                    values[f"result/{name}:{key}"] = value
        self._trackers.log(values)

    def close(self) -> None:
        """Send what trackers hold, and end their runs."""
        if self._trackers is not None:
            self._trackers.close()


def _key(record: Mapping[str, Any]) -> tuple[Any, frozenset[str]]:
    """Of a record: a step may have one of training and one of validation."""
    return record.get("step"), frozenset(record)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

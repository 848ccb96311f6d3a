"""A comparison's folder: its settings, its training runs, and what is measured, part by part.

config.yaml                     its options
seed-0.json                     the model and the data of a seed
runs/ft-3e-05-0/                the run folder of method, rate and seed; outcome.json when ended
parts/ft-0.jsonl                result lines of a method's chosen run
parts/ft+vrf-0.jsonl            and of an ensemble on it
samples/                        what every line was measured on, sample by sample
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustft import atomic, jsonlines
from robustft.cli.options import flag, offered, resolve, to_yaml
from robustft.cli.run_folder import CONFIG, RESULTS, WEIGHTS
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError
from robustft.evaluate import samples
from robustft.train import best, checkpoint
from robustft.train.fingerprint import differences

#: Options that may change from one start to the next: they bear on no line that is kept.
_FREE = frozenset(
    (
        *("methods", "seeds", "ensembles", "keep_models", "out", "method_module"),
        *("device", "workers", "feature_store", "report_to"),
        *("save_frequency", "save_steps", "save_minutes", "keep"),
    )
)
_OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Part:
    """What is measured and kept at once: a method of a seed, or an ensemble on it."""

    seed: int
    method: str
    ensemble: str | None = None

    @property
    def name(self) -> str:
        """ft, or ft+vrf."""
        return self.method if self.ensemble is None else f"{self.method}+{self.ensemble}"


@dataclass(frozen=True)
class Outcome:
    """How a training run ended: its accuracy on ID validation, or why it has none."""

    top1: float | None
    diverged: str | None = None


class Kept:
    """The folder `out` of a comparison, which one process writes."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def began(self) -> bool:
        """Whether there is a comparison."""
        return (self.out / CONFIG).is_file() and (self.out / "parts").is_dir()

    def begin(self, options: TrainOptions) -> None:
        """Note the options. Errors: InputError naming one that the folder began with another value
        of, where that bears on the result."""
        path = self.out / CONFIG
        if path.is_file():
            before = resolve(type(options), path, {}, imports=False)
            for field in offered(type(options)):
                old, new = (getattr(one, field.name) for one in (before, options))
                if field.name not in _FREE and old != new:
                    raise InputError(
                        f"{flag(field.name)}: got {_spoken(new)}, expected {_spoken(old)}, with "
                        f"which {self.out} began; a changed comparison needs another --out"
                    )
        (self.out / "parts").mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, to_yaml(options))
        atomic.sweep(self.out, {CONFIG, RESULTS}.__contains__)
        for folder in ("parts", samples.FOLDER):
            atomic.sweep(self.out / folder, lambda name: True)

    def check_data(self, seed: int, identity: dict[str, Any]) -> None:
        """Note what a seed's model and data are. Errors: InputError where they have changed."""
        path = self.out / f"seed-{seed}.json"
        if not path.is_file():
            atomic.write_json(path, identity)
            return
        changed = differences(json.loads(path.read_text(encoding="utf-8")), identity)
        if changed:
            raise InputError(
                f"{self.out}: {changed[0]}; a comparison of what has changed needs another --out"
            )

    def records(self, part: Part) -> list[dict[str, Any]] | None:
        """The lines of a part, or None where it is still to be measured."""
        path = self._part(part)
        if not path.is_file():
            return None
        return [samples.located(line, self.out) for _, line in jsonlines.read(path)]

    def keep(self, part: Part, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write the lines of a part, and their samples to those of all results; the lines, as
        `records` gives them from then on."""
        written = [samples.keep(record, self.out) for record in records]
        with atomic.replacing(self._part(part)) as temporary:
            for record in written:
                jsonlines.append(temporary, record)
        return written

    def run(self, method: str, lr: float, seed: int) -> Path:
        """The run folder of a method, a rate and a seed."""
        return self.out / "runs" / f"{method}-{lr!r}-{seed}"

    def outcome(self, run: Path) -> Outcome | None:
        """How a run ended, or None where it has not."""
        from robustft.models.classifier_file import classifier_metadata

        path = run / _OUTCOME
        if path.is_file():
            return Outcome(**json.loads(path.read_text(encoding="utf-8")))
        if (run / WEIGHTS).is_file():  # killed between the two
            metadata = classifier_metadata(run / WEIGHTS)["metadata"]
            return self.end(run, Outcome(metadata["val:top1"]))
        return None

    def end(self, run: Path, outcome: Outcome) -> Outcome:
        """Note how a run ended; it needs no checkpoint any more."""
        atomic.write_json(run / _OUTCOME, dataclasses.asdict(outcome))
        shutil.rmtree(checkpoint.folder(run), ignore_errors=True)
        return outcome

    def drop_model(self, run: Path, parts: Iterable[str]) -> None:
        """Remove the weights of a run that was not chosen, and its method's `parts`."""
        for name in (WEIGHTS, best.FILE, *parts):
            path = run / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _part(self, part: Part) -> Path:
        return self.out / "parts" / f"{part.name}-{part.seed}.jsonl"


def _spoken(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)

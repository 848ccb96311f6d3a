"""The weights of the best validation accuracy, for select="best"."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from robustft.errors import InputError
from robustft.models import Classifier, Clip, load_classifier, save_classifier

FILE = "best.safetensors"


class Best:
    """The best classifier so far, in memory and, with a folder, in its best.safetensors.

    measure: by which, such as "top1".
    """

    def __init__(self, run_dir: Path | None, *, main: bool, measure: str) -> None:
        self._key = f"val:{measure}"
        self._path = None if run_dir is None else run_dir / FILE
        self._main = main
        self.accuracy: float | None = None
        self.weights: dict[str, Tensor] | None = None

    def offer(self, classifier: Classifier, accuracy: float, step: int) -> bool:
        """Keep `classifier` if it is the first or better, and its numbers are finite; whether it
        was kept."""
        if self.accuracy is not None and not accuracy > self.accuracy:
            return False
        weights = {k: v.detach().cpu().clone() for k, v in classifier.state_dict().items()}
        if not all(bool(v.isfinite().all()) for v in weights.values()):
            return False
        self.accuracy, self.weights = accuracy, weights
        if self._path is not None and self._main:
            found = {"step": step, self._key: accuracy}
            save_classifier(self._path, classifier, metadata=found)
        return True

    def recall(self, clip: Clip, step: int) -> None:
        """Take over what a run that resumes after `step` had found by then.

        Weights of a later step are left: the run will find them again, or better ones.
        """
        if step == 0 or self._path is None or not self._path.is_file():
            return
        try:
            kept = load_classifier(self._path, clip)
        except InputError as error:
            raise InputError(f"{error}; remove the file to go on without it") from error
        found, accuracy = kept.metadata.get("step"), kept.metadata.get(self._key)
        if not isinstance(found, int) or not isinstance(accuracy, int | float):
            raise InputError(
                f"{self._path}: metadata without step and {self._key}, remove the file"
            )
        if found <= step:
            self.accuracy, self.weights = float(accuracy), dict(kept.state_dict())

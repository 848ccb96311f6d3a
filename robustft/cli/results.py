"""Result lines: of a model on a suite, printed, and appended to the result files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.train import processes

if TYPE_CHECKING:
    from robustft.evaluate.collect import Outputs
    from robustft.evaluate.retrieval import Recalls
    from robustft.evaluate.suite import Suite
    from robustft.models import Classifier


def lines_of(
    suite: Suite, outputs: dict[str, Outputs], recalls: dict[str, Recalls], **identity: Any
) -> list[dict[str, Any]]:
    """The result lines of one model's outputs and recalls on all sets of a suite."""
    return suite.records(outputs, **identity) + suite.retrieval_records(recalls, **identity)


def measured(suite: Suite, classifier: Classifier, **identity: Any) -> list[dict[str, Any]]:
    """The result lines of a model, which is evaluated on all sets of a suite."""
    return lines_of(suite, suite.outputs(classifier), suite.retrieve(classifier), **identity)


def append(lines: list[dict[str, Any]], *files: Path | None) -> None:
    """Append result lines to the files that are not None, on the main process."""
    from robustft.evaluate.results import append_result

    if not processes.main():
        return
    for line in lines:
        for file in files:
            if file is not None:
                append_result(file, line)


def record(lines: list[dict[str, Any]], *files: Path | None) -> None:
    """Print one line an evaluation and append it to the result files; corruptions of one set have a
    line together."""
    from robustft.evaluate.corruptions import summary
    from robustft.evaluate.results import headline, headline_name
    from robustft.evaluate.retrieval import MEASURES as RECALLS
    from robustft.evaluate.segmentation import MEASURES as OF_MAPS

    append(lines, *files)
    for line in lines:
        name, value = line.get("dataset"), headline(line)
        if value is not None:
            alpha = "" if line.get("alpha") is None else f" α={line['alpha']:g}"
            what = headline_name(line) + " " * (headline_name(line) != "")
            own = "".join(
                f", {measure} {100 * line[key]:.2f}"
                for measure in ("macro-f1", "worst-group", *RECALLS, *OF_MAPS[1:])
                if line.get(key := f"{name}:{measure}") is not None
            )
            print(f"{line['method']}{alpha}  {name}: {what}{100 * value:.2f}{own}")
    for text in summary(lines):
        print(text)

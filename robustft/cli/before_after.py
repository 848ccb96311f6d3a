"""A run beside the zero-shot model that it began from: what was gained, what was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robustft.cli.ending import command
from robustft.cli.results import append, lines_of, record
from robustft.cli.run_folder import RESULTS
from robustft.cli.runs import open_run
from robustft.errors import warn
from robustft.evaluate.results import headline, headline_name

if TYPE_CHECKING:
    from robustft.evaluate.collect import Outputs
    from robustft.evaluate.retrieval import Recalls
    from robustft.evaluate.suite import Record, Suite

    ByName = Mapping[str, Outputs]


@dataclass(frozen=True)
class Before:
    """A run's suite, and the zero-shot model's outputs and recalls on it, from before training."""

    suite: Suite
    outputs: dict[str, Outputs]
    recalls: dict[str, Recalls]


def before_training(suite: Suite) -> Before:
    """Evaluate the zero-shot model and print its accuracies."""
    from robustft.models import Classifier

    zero_shot = Classifier.zero_shot(suite.clip, suite.classnames, suite.templates)
    before = Before(suite, suite.outputs(zero_shot), suite.retrieve(zero_shot))
    record(lines_of(suite, before.outputs, before.recalls, method="zero-shot", seed=0))
    return before


def compare_run(folder: Path, results_db: Path | None, device: str, before: Before) -> list[Record]:
    """Evaluate a run's fine-tuned model, print it beside the zero-shot model, and append the lines
    of both to the run's own results and to `results_db`.

    Returns: the lines of the run's own model."""
    run = open_run(folder, device)
    suite, method, seed = before.suite, run.options.method, run.options.seed
    files = (folder / RESULTS, results_db)
    lines = lines_of(suite, before.outputs, before.recalls, method="zero-shot", seed=seed)
    if method == "zero-shot":
        record(lines, *files)
        return lines
    after = suite.outputs(run.fine_tuned)
    tuned = lines_of(suite, after, suite.retrieve(run.fine_tuned), method=method, seed=seed)
    geometry = geometry_lines(suite, before.outputs, after, method=method, seed=seed)
    still = geometry_lines(suite, before.outputs, before.outputs, method="zero-shot", seed=seed)
    append(lines + tuned + still + geometry, *files)
    print(comparison(lines, tuned, geometry))
    if unchanged(before.outputs, after):
        warn(
            "the fine-tuned model predicts as the zero-shot model does on every image: look at the "
            "learning rate, the number of steps, and a moving average longer than the run"
        )
    return tuned + geometry


def geometry_lines(suite: Suite, before: ByName, after: ByName, **identity: Any) -> list[Record]:
    """The RSA line of every forgetting set: how much of the encoder's geometry is kept where it
    was not trained."""
    names = [name for name, entry in suite.entries.items() if entry.role == "forgetting"]
    return [suite.geometry_record(before, after, name, **identity) for name in names]


def comparison(before: list[Record], after: list[Record], geometry: list[Record]) -> str:
    """The table of both models: a row a set with its role, in percent (top-1, or what else the set
    stands by), and the RSA."""
    method = after[0]["method"]
    rows = [("", "zero-shot", method, "difference")]
    for first, then in zip(before, after, strict=True):
        name = first["dataset"]
        what = ", ".join(filter(None, (first["role"], headline_name(first))))
        old, new = (100 * (headline(line) or 0.0) for line in (first, then))
        rows.append((f"{name} ({what})", f"{old:.1f}", f"{new:.1f}", f"{new - old:+.1f}"))
    for line in geometry:
        kept = line["RSA:euclidean"]
        shown = "–" if kept is None else f"{kept:.3f}"
        rows.append((f"RSA on {line['dataset']}", "1", shown, ""))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def unchanged(before: ByName, after: ByName) -> bool:
    """Whether the tuned model predicts as the zero-shot one does, on every sample of every set;
    False where there is no set with classes."""
    return bool(before) and all(
        torch.equal(before[name].logits.argmax(dim=1), after[name].logits.argmax(dim=1))
        for name in before
    )


def next_steps(folder: Path, ensembles: Sequence[str], *, strengths: bool = False) -> list[str]:
    """The commands for a finished run. strengths: its result has a strength to be chosen."""
    steps = [command(verb, "--run", folder) for verb in ensembles]
    if strengths:
        steps.insert(0, command("eval", "--run", folder, "--alpha", "0,0.25,0.5,0.75,1"))
    return [*steps, command("report", "--results-db", folder)]

"""One seed of a comparison: its data, its training runs, the choice of a rate, and its ensembles.

The learning rate is chosen by the runs' accuracy on ID validation, the smaller one on a tie; test
sets are looked at with the chosen model alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import robustft
from robustft import progress
from robustft.cli import before_after, materials, mixtures, suites, training
from robustft.cli.kept import Kept, Outcome, Part
from robustft.cli.run_folder import WEIGHTS
from robustft.errors import DivergedError, InputError, warn
from robustft.methods import METHODS

if TYPE_CHECKING:
    from robustft.cli.compare_options import CompareOptions
    from robustft.data.datasets import ImageDataset
    from robustft.evaluate.collect import Outputs
    from robustft.evaluate.suite import Record, Suite
    from robustft.models import Classifier, Clip

# Generated images up to so many bytes are transformed once, and kept.
_SMALL = 2**28


def runs_of(options: CompareOptions, part: Part) -> int:
    """How many models are trained for a part."""
    return 0 if part.ensemble is not None else len(options.rates(part.method))


class Experiment:
    """Model, data and suite of one seed are loaded when something is first to be measured."""

    def __init__(
        self, options: CompareOptions, seed: int, kept: Kept, device: str, bar: Any
    ) -> None:
        self.options = dataclasses.replace(options, seed=seed)
        self.seed, self.kept, self.device, self.bar = seed, kept, device, bar
        self._last: tuple[str, Classifier, dict[str, Outputs]] | None = None

    def records(self, parts: Sequence[Part]) -> list[Record]:
        """The lines of all parts: what is kept as it is, the others measured now."""
        found = []
        for method, group in itertools.groupby(parts, key=lambda part: part.method):
            for part in group:
                lines = self.kept.records(part)
                if lines is None:
                    lines = self.kept.keep(part, self._measure(part))
                    if not runs_of(self.options, part):  # which are counted one by one
                        self.bar.update()
                else:
                    self._say(part.name, "kept from before")
                found += lines
            if not self.options.keep_models:
                self._drop_others(method)
        return found

    def _measure(self, part: Part) -> list[Record]:
        suite = self.suite  # whose data are looked at before time is spent
        if part.method == "zero-shot":
            return self._lines("zero-shot", self.before)
        if part.ensemble is None:
            return self._method(part.method)
        best = self._best(part.method)
        if best is None:
            return []
        tuned, after = self._chosen(part.method, best)
        pair = mixtures.Pair(
            method=part.method,
            seed=self.seed,
            suite=suite,
            train=self.train,
            val=self.inputs.val,
            zero_shot=self.zero_shot,
            tuned=tuned,
            before=self.before,
            after=after,
            every_rate=lambda: self._every_rate(part.method),
            batch_size=self.options.batch_size,
            alphas=self.options.alpha,
        )
        lines, said = mixtures.lines(part.ensemble, pair)
        self._say(part.name, said)
        return lines

    @cached_property
    def clip(self) -> Clip:
        return materials.load_model(self.options, self.device)

    @cached_property
    def inputs(self) -> training.Inputs:
        needing = [name for name in self.options.methods if METHODS[name].needs_reference]
        options = dataclasses.replace(self.options, method=(needing or self.options.methods)[0])
        # A method added later must find the pairs of the first start, whether they are needed now.
        given = options.reference is not None
        loaded = training.load_inputs(options, self.clip, reference=given)
        if not loaded.train.classnames:
            raise InputError(
                f"--data-location: got {loaded.train.name}, captions, expected classes to compare "
                "on (robustft train takes both)"
            )
        return dataclasses.replace(
            loaded,
            train=_ready(loaded.train),
            val=_ready(loaded.val),
            reference=None if loaded.reference is None else _ready(loaded.reference),
        )

    @cached_property
    def train(self) -> ImageDataset:
        """The training images with the evaluation transform."""
        if self.options.aug == "none":
            return self.inputs.train
        return _ready(materials.load_split(self.options, "train", self.clip.preprocess_val))

    @cached_property
    def suite(self) -> Suite:
        """The test sets. Errors: InputError where model or data of the seed have changed."""
        from robustft.train.fingerprint import digest, identity, pairs_identity

        classes, templates = self.inputs.train.label_space, self.inputs.templates
        suite = suites.first_suite(
            self.options, self.clip, classes, templates, self.device, say=self.seed == 0
        )
        if suite.captioned:
            raise InputError(
                f"datasets: got {next(iter(suite.captioned))}, captions, expected classes to "
                "compare on (robustft eval takes both)"
            )
        suite.batch_size = max(suite.batch_size, 256)  # as the runs validate
        for name, entry in suite.entries.items():
            suite.entries[name] = dataclasses.replace(entry, dataset=_ready(entry.dataset))
        tests = [entry.dataset for entry in suite.entries.values()]
        data = [self.inputs.train, self.inputs.val, *tests]
        found: dict[str, Any] = {f"{one.name} ({one.split})": identity(one) for one in data}
        found |= {"version": robustft.__version__, "weights": digest(self.clip.model)}
        if self.inputs.reference is not None:
            found["reference"] = pairs_identity(self.inputs.reference)
        self.kept.check_data(self.seed, found)
        return suite

    @cached_property
    def zero_shot(self) -> Classifier:
        from robustft.models import Classifier

        classifier = Classifier.zero_shot(
            self.clip, self.inputs.train.classnames, self.inputs.templates
        )
        return classifier.to(self.device)

    @cached_property
    def before(self) -> dict[str, Outputs]:
        return self.suite.outputs(self.zero_shot)

    def _method(self, method: str) -> list[Record]:
        """Train at every rate; the lines of all on validation, and of the best on the test sets."""
        start = time.perf_counter()
        outcomes = {}
        for lr in self.options.rates(method):
            outcomes[lr] = self._train(method, lr)
            self.bar.update()
        scores = {lr: x.top1 for lr, x in outcomes.items() if x.top1 is not None}
        # Rates ascend: of equals the smallest.
        best = max(scores, key=lambda lr: scores[lr], default=None)
        lines = [
            self._validation(method, lr, outcome, selected=lr == best)
            for lr, outcome in outcomes.items()
        ]
        tried = "  ".join(
            f"{lr:g}: diverged" if outcome.top1 is None else f"{lr:g}: {100 * outcome.top1:.1f}"
            for lr, outcome in outcomes.items()
        )
        took = time.perf_counter() - start
        self._say(method, f"ID validation by rate  {tried}  ({took:.0f} s)")
        if best is None:
            warn(f"{method}: training diverged at every rate, so it is left out (seed {self.seed})")
            return lines
        _, after = self._chosen(method, best)
        return lines + self._lines(method, after, lr=best)

    def _train(self, method: str, lr: float, *, model: bool = False) -> Outcome:
        """How the run ended, or ends now. model: its weights are needed, and not its accuracy
        alone."""
        from robustft.train import checkpoint

        folder = self.kept.run(method, lr, self.seed)
        outcome = self.kept.outcome(folder)
        have = outcome is not None and (outcome.top1 is None or _weights(folder).is_file())
        if outcome is not None and (have or not model):
            return outcome
        options = self.options.of_run(method, lr, self.seed, folder)
        if checkpoint.complete(folder):
            options = dataclasses.replace(options, resume="latest")
        else:
            training.write_config(folder, options)
        kind, config = training.check(options, self.device)
        trainer = training.make_trainer(options, folder, self.clip, self.inputs, kind, config)
        training.write_shots(folder, trainer)
        try:
            trainer.run()
        except DivergedError as error:
            return self.kept.end(folder, Outcome(None, str(error)))
        return self.kept.end(folder, Outcome(trainer.val_top1))

    def _best(self, method: str) -> float | None:
        """The rate that was chosen for a method that is measured, or None where all diverged."""
        lines = self.kept.records(Part(self.seed, method)) or []
        chosen = (x["lr"] for x in lines if x["role"] == "validation" and x["selected"])
        return next(chosen, None)

    def _chosen(self, method: str, lr: float) -> tuple[Classifier, dict[str, Outputs]]:
        """A method's model at a rate, and the suite's outputs of it; the last one is remembered."""
        if self._last is None or self._last[0] != method:
            self._last = None
            classifier = self._load(method, lr)
            self._last = method, classifier, self.suite.outputs(classifier)
        return self._last[1:]

    def _every_rate(self, method: str) -> list[Classifier]:
        rates = self.options.rates(method)
        return [
            self._load(method, lr)
            for lr in rates
            if self._train(method, lr, model=True).top1 is not None
        ]

    def _load(self, method: str, lr: float) -> Classifier:
        from robustft.models import load_classifier

        self._train(method, lr, model=True)
        path = _weights(self.kept.run(method, lr, self.seed))
        return load_classifier(path, self.clip).to(self.device)

    def _drop_others(self, method: str) -> None:
        """Of the rates that were not chosen the weights are no longer needed."""
        best = self._best(method)
        for lr in self.options.rates(method):
            if lr != best:
                self.kept.drop_model(self.kept.run(method, lr, self.seed), METHODS[method].parts)

    def _lines(self, method: str, after: dict[str, Outputs], **more: Any) -> list[Record]:
        """Accuracies and kept geometry of one model."""
        who = {"method": method, "seed": self.seed, **more}
        return self.suite.records(after, **who) + before_after.geometry_lines(
            self.suite, self.before, after, **who
        )

    def _validation(self, method: str, lr: float, outcome: Outcome, *, selected: bool) -> Record:
        """The line of a run's accuracy on ID validation."""
        val = self.inputs.val
        return {
            "dataset": val.name,
            "role": "validation",
            "split": val.split,
            "method": method,
            "seed": self.seed,
            "lr": lr,
            "selected": selected,
            "n": len(val),
            f"{val.name}:top1": outcome.top1,
        }

    def _say(self, name: str, text: str) -> None:
        with progress.aside():
            print(f"seed {self.seed}  {name:18} {text}")


def _weights(run: Path) -> Path:
    return run / WEIGHTS


def _ready(dataset: Any) -> Any:
    """Generated images, which lie in memory anyway, are transformed once; others are left."""
    from robustft.data.images import ArrayImages
    from robustft.data.transforms import is_deterministic

    if not isinstance(dataset.images, ArrayImages) or not is_deterministic(dataset.transform):
        return dataset
    first = dataset[0]["image"]
    fits = first.numel() * first.element_size() * len(dataset) <= _SMALL
    return dataset.preloaded() if fits else dataset

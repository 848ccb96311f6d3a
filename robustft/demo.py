"""The demo's experiment: the methods on real handwriting, from one tiny model, seed by seed.

A tiny CLIP, pre-trained on generated glyphs, is fine-tuned on scikit-learn's handwritten digits by
each method with one grid of learning rates and one budget, chosen on ID validation. Measured are
the digits (ID), shifts of them (OOD), what else the model could do (letters and ink colours,
zero-shot: forgetting), and how much of its geometry is kept (RSA).

What is measured is kept part by part in a folder, so that an interrupted demo goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import robustft
from robustft import atomic, jsonlines
from robustft.data import load_dataset, load_reference
from robustft.data.datasets import ImageDataset
from robustft.data.digits import digit_shifts
from robustft.ensemble import greedy_soup, tpgm, uniform_soup
from robustft.ensemble.vrf import VRF
from robustft.errors import DivergedError, InputError
from robustft.evaluate.collect import Outputs
from robustft.evaluate.curves import fit_vrf, output_curve, ratio_lines, vrf_lines, wise_ft_curve
from robustft.evaluate.suite import Suite
from robustft.methods import METHODS, make_method
from robustft.models import Classifier, Clip, load_classifier, save_classifier
from robustft.train import TrainConfig, Trainer

Record = dict[str, Any]

TRAINED = ("linear-probe", "ft", "lp-ft", "flyp", "r-adapter", "dive")
"""The methods of a demo that names none."""
BASES = ("ft", "dive")
"""The methods on which ensembles are built: their classifiers are kept."""
_MIXTURES = "mixtures"
REFERENCES = 2048
ALPHAS = [round(0.1 * i, 1) for i in range(11)]


@dataclass(frozen=True)
class Budget:
    """What every method may spend: epochs of batches at each of the learning rates."""

    epochs: int
    batch_size: int
    rates: tuple[float, ...]


class Kept:
    """The parts measured so far, in `folder`; those of another budget or version are dropped."""

    def __init__(self, folder: Path, budget: Budget, weights: str) -> None:
        self.folder = folder
        settings = {**vars(budget), "rates": list(budget.rates), "weights": weights}
        settings["version"] = robustft.__version__
        path = folder / "settings.json"
        try:
            same = json.loads(path.read_text(encoding="utf-8")) == settings
        except (OSError, ValueError):
            same = False
        if not same:
            self.drop()
            atomic.write_json(path, settings)

    def records(self, seed: int, part: str) -> list[Record] | None:
        """The lines of a part, or None where it is still to be measured."""
        path = self._path(seed, part, ".jsonl")
        return [line for _, line in jsonlines.read(path)] if path.is_file() else None

    def keep(self, seed: int, part: str, records: list[Record]) -> None:
        with atomic.replacing(self._path(seed, part, ".jsonl")) as temporary:
            for record in records:
                jsonlines.append(temporary, record)

    def model(self, seed: int, name: str) -> Path:
        """Where the classifier of a method is kept."""
        return self._path(seed, name, ".safetensors")

    def count(self) -> int:
        return len(list(self.folder.glob("*.jsonl")))

    def drop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, seed: int, part: str, suffix: str) -> Path:
        return self.folder / f"seed-{seed}-{part}{suffix}"


def every_method() -> tuple[str, ...]:
    """All methods that train, those of other distributions among them."""
    return tuple(name for name, method in METHODS.items() if method.published.epochs)


def parts(methods: Sequence[str] = TRAINED, *, mixtures: bool = False) -> tuple[str, ...]:
    """What is measured of each seed: the zero-shot model, the methods, ensembles on those of BASES
    that are among them; mixtures: and what else can be made of FT's models."""
    bases = [base for base in BASES if base in methods]
    ensembles = ["ensembles" if bases == list(BASES) else f"ensembles-{'-'.join(bases)}"]
    more = [_MIXTURES] if mixtures and "ft" in methods else []
    return ("zero-shot", *methods, *(ensembles if bases else []), *more)


def measure(
    clip: Clip,
    seed: int,
    budget: Budget,
    kept: Kept,
    methods: Sequence[str] = TRAINED,
    *,
    mixtures: bool = False,
) -> Iterator[Record]:
    """All result lines of one seed: those that are kept as they are, the others measured now."""
    experiment = Experiment(clip, seed, budget, kept)
    for part in parts(methods, mixtures=mixtures):
        records = kept.records(seed, part)
        if records is None:
            records = list(experiment.measure(part))
            kept.keep(seed, part, records)
        else:
            print(f"seed {seed}  {part:13} kept from before")
        yield from records


class Experiment:
    """One seed's splits, training runs and ensembles. The data are made when first needed."""

    def __init__(self, clip: Clip, seed: int, budget: Budget, kept: Kept) -> None:
        self.clip, self.seed, self.budget, self.kept = clip, seed, budget, kept
        self._rates: dict[str, list[Classifier]] = {}

    def measure(self, part: str) -> Iterator[Record]:
        """The result lines of one of `parts`; ensembles need the classifiers of BASES kept."""
        if part == "zero-shot":
            yield from self._lines("zero-shot", self.before)
        elif part == _MIXTURES:
            yield from self._mixtures("ft")
        elif part.startswith("ensembles"):
            for base in [base for base in BASES if part in ("ensembles", f"ensembles-{base}")]:
                classifier = load_classifier(self.kept.model(self.seed, base), self.clip)
                after = self.suite.outputs(classifier)
                if base == "ft":
                    yield from self._curves(base, classifier, after)
                yield from self._vrf(base, classifier, after)
        else:
            classifier = self.best_rate(part)
            if part in BASES:
                save_classifier(self.kept.model(self.seed, part), classifier)
            yield from self._lines(part, self.suite.outputs(classifier))

    @cached_property
    def train(self) -> ImageDataset:
        return self._split("train")

    @cached_property
    def val(self) -> ImageDataset:
        return self._split("val")

    @cached_property
    def templates(self) -> list[Any]:
        return list(self.train.templates or ())

    @cached_property
    def reference(self) -> Any:
        pairs = load_reference("glyphs", n=REFERENCES, seed=self.seed)
        return pairs.preloaded(self.clip.preprocess_val)

    @cached_property
    def suite(self) -> Suite:
        test = self._split("test")
        shifts = [d.preloaded(self.clip.preprocess_val) for d in digit_shifts(self.seed).values()]
        others = [
            load_dataset(name, "test", seed=self.seed).preloaded(self.clip.preprocess_val)
            for name in ("letters", "inks")
        ]
        datasets = [test, *shifts, *others]
        names = self.train.classnames
        return Suite(self.clip, names, self.templates, datasets, id_name=test.name)

    @cached_property
    def zero_shot(self) -> Classifier:
        return Classifier.zero_shot(self.clip, self.train.classnames, self.templates)

    @cached_property
    def before(self) -> dict[str, Outputs]:
        return self.suite.outputs(self.zero_shot)

    def best_rate(self, name: str) -> Classifier:
        """Train at every learning rate; the best on ID validation, the smaller rate on a tie."""
        start = time.perf_counter()
        scores: dict[float, float] = {}
        chosen: list[Classifier] = []
        for rate in sorted(self.budget.rates):
            config = TrainConfig(
                epochs=self.budget.epochs,
                batch_size=self.budget.batch_size,
                lr=rate,
                wd=0.0,
                warmup=len(self.train) // self.budget.batch_size,  # one epoch
                grad_clip_norm=1.0,
                seed=self.seed,
                val_frequency=0,
                device="cpu",
            )
            trainer = Trainer(
                make_method(name, **METHODS[name].demo),
                self.clip,
                self.train,
                self.val,
                config,
                templates=self.templates,
                reference=self.reference,
                progress=False,
            )
            try:
                classifier = trainer.run()
            except DivergedError as error:
                print(f"seed {self.seed}  {name:13} {error}")
                continue
            score = trainer.val_top1 or 0.0
            if score > max(scores.values(), default=-1.0):
                chosen = [classifier]
            scores[rate] = score
            if name == "ft":
                self._rates.setdefault(name, []).append(classifier)
        if not chosen:
            raise InputError(f"--lr: {name} diverges at every rate given, expected smaller ones")
        tried = "  ".join(f"{rate:g}: {100 * score:.1f}" for rate, score in scores.items())
        took = time.perf_counter() - start
        print(f"seed {self.seed}  {name:13} ID validation by rate  {tried}  ({took:.0f} s)")
        return chosen[0]

    def _mixtures(self, base: str) -> Iterator[Record]:
        """Soups over the learning rates, learnt radii, and other mixtures of outputs."""
        if base not in self._rates:  # kept from before, when they were not wanted
            self.best_rate(base)
        models = self._rates[base]
        soup, recipe = greedy_soup(models, lambda one: self.suite.collect(one, self.val))
        print(f"seed {self.seed}  {'greedy-soup':13} {recipe}")
        best = load_classifier(self.kept.model(self.seed, base), self.clip)
        made = {
            "greedy-soup": soup,
            "uniform-soup": uniform_soup(models),
            "post-tpgm": tpgm(
                self.zero_shot,
                best,
                self.val,
                batch_size=self.budget.batch_size,
                seed=self.seed,
            )[0],
        }
        for name, classifier in made.items():
            yield from self._lines(name, self.suite.outputs(classifier), base=base)
        after = self.suite.outputs(best)
        settings: list[dict[str, Any]] = [{"space": "logit"}, {"calibrate": True}]
        for more in settings:
            lines, _ = output_curve(
                self.suite,
                self.zero_shot,
                best,
                self.val,
                ALPHAS,
                before=self.before,
                after=after,
                base=base,
                seed=self.seed,
                **more,
            )
            yield from lines

    def _lines(self, method: str, after: dict[str, Outputs], **more: Any) -> list[Record]:
        """Accuracies and kept geometry of one model."""
        identity = self._identity(method, **more)
        return self.suite.records(after, **identity) + self._geometry(after, identity)

    def _geometry(self, after: dict[str, Outputs], identity: Record) -> list[Record]:
        return [
            self.suite.geometry_record(self.before, after, name, **identity)
            for name, entry in self.suite.entries.items()
            if entry.role == "forgetting"
        ]

    def _curves(
        self, base: str, classifier: Classifier, after: dict[str, Outputs]
    ) -> Iterator[Record]:
        """WiSE-FT and output ensembling over α."""
        models = self.zero_shot, classifier
        who: Record = {"base": base, "seed": self.seed}
        lines, choice, mixed = wise_ft_curve(self.suite, *models, self.val, ALPHAS, **who)
        yield from lines
        identity = self._identity("wise-ft", base=base, alpha=choice.alpha)
        yield from self._geometry(self.suite.outputs(mixed), identity)
        lines, _ = output_curve(
            self.suite, *models, self.val, ALPHAS, before=self.before, after=after, **who
        )
        yield from lines

    def _vrf(
        self, base: str, classifier: Classifier, after: dict[str, Outputs]
    ) -> Iterator[Record]:
        """VRF, and the accuracy ratio against its distance on all ID and OOD sets together."""
        estimator = fit_vrf(VRF(), self.suite, self.zero_shot, classifier, self.train, self.val)
        who = {"base": base, "seed": self.seed}
        yield from vrf_lines(estimator, self.suite, before=self.before, after=after, **who)
        if base != "ft":
            return
        yield from ratio_lines(estimator, self.suite, before=self.before, after=after, **who)

    def _identity(self, method: str, **more: Any) -> Record:
        return {"method": method, "seed": self.seed, **more}

    def _split(self, split: str) -> ImageDataset:
        return load_dataset("digits", split, seed=self.seed).preloaded(self.clip.preprocess_val)

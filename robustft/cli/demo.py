"""`robustft demo`: every method on real handwriting, in minutes, on the machine at hand.

A tiny CLIP, pre-trained on generated glyphs, is fine-tuned on scikit-learn's handwritten digits by
every method with one grid of learning rates and one budget, chosen on ID validation. Measured are
the digits (ID), shifts of them (OOD), what else the model could do (letters and ink colours,
zero-shot: forgetting), and how much of its geometry is kept (RSA).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robustft.cli.options import setting
from robustft.errors import InputError

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset
    from robustft.evaluate.collect import Outputs
    from robustft.models import Classifier, Clip

Record = dict[str, Any]

TRAINED = ("linear-probe", "ft", "lp-ft", "flyp", "r-adapter", "dive")
REFERENCES = 2048
ALPHAS = [round(0.1 * i, 1) for i in range(11)]
# The papers' values are for tens of thousands of steps; a run here has some 170. R-Adapter's
# average spans some twenty of them, and DiVE's λ leaves the contrastive loss room (docs/demo.md).
SETTINGS: dict[str, dict[str, Any]] = {"r-adapter": {"ema": 0.95}, "dive": {"lambda_": 10.0}}


@dataclass(frozen=True)
class DemoOptions:
    """Options of `robustft demo`."""

    out: Path = setting(Path("demo"), "Folder for the report and the results.")
    seeds: int = setting(1, "Repeat with this many seeds; the table then shows mean ± std.")
    epochs: int = setting(10, "Passes over the 1,079 training digits, for every method.")
    batch_size: int = setting(64, "Images a step.")
    lr: list[float] = setting(
        [1e-3, 3e-3, 1e-2, 3e-2, 1e-1], "Learning rates that every method tries."
    )
    retrain: bool = setting(False, "Pre-train the tiny CLIP anew first (minutes).")


def demo(options: DemoOptions) -> None:
    """Train and compare every method on handwritten digits; no network, no GPU, minutes."""
    from robustft.evaluate.results import append_result
    from robustft.files import replacing
    from robustft.models import load_clip
    from robustft.report import table, write_report

    if options.seeds < 1:
        raise InputError(f"--seeds: got {options.seeds}, expected at least 1")
    start = time.perf_counter()
    clip = load_clip("robustft-tiny", str(_retrain(options)) if options.retrain else "glyphs")
    records: list[Record] = []
    for seed in range(options.seeds):
        records.extend(_Seed(options, clip, seed).run())
    with replacing(options.out / "results.jsonl") as temporary:
        for record in records:
            append_result(temporary, record)
    write_report(records, options.out, title="robustft demo: fine-tuning on handwritten digits")
    print(f"\n{table(records)}\n")
    print(f"{time.perf_counter() - start:.0f} s; report: {options.out / 'report.html'}")


def _retrain(options: DemoOptions) -> Path:
    from robustft.train.pretrain import pretrain

    path = options.out / "tiny_glyphs.safetensors"
    pretrain(path)
    return path


class _Seed:
    """One pass of the demo: the splits, the training runs and the ensembles of one seed."""

    def __init__(self, options: DemoOptions, clip: Clip, seed: int) -> None:
        from robustft.data import load_dataset, load_reference
        from robustft.data.digits import digit_shifts
        from robustft.evaluate.suite import Suite
        from robustft.models import Classifier

        self.options, self.clip, self.seed = options, clip, seed

        def ready(dataset: ImageDataset) -> ImageDataset:
            return dataset.preloaded(clip.preprocess_val)

        self.train, self.val, test = (
            ready(load_dataset("digits", split, seed=seed)) for split in ("train", "val", "test")
        )
        assert self.train.templates is not None
        self.templates = self.train.templates
        self.reference = load_reference("glyphs", n=REFERENCES, seed=seed).preloaded(
            clip.preprocess_val
        )
        shifts = [ready(d) for d in digit_shifts(seed).values()]
        others = [ready(load_dataset(name, "test", seed=seed)) for name in ("letters", "inks")]
        self.suite = Suite(
            clip,
            self.train.classnames,
            self.templates,
            [test, *shifts, *others],
            id_name=test.name,
        )
        self.zero_shot = Classifier.zero_shot(clip, self.train.classnames, self.templates)
        self.before = self.suite.outputs(self.zero_shot)

    def run(self) -> Iterator[Record]:
        """All result lines of this seed."""
        yield from self._lines("zero-shot", self.before)
        tuned = {}
        for name in TRAINED:
            classifier = self._best_rate(name)
            after = self.suite.outputs(classifier)
            yield from self._lines(name, after)
            tuned[name] = classifier, after
        yield from self._ensembles("ft", *tuned["ft"])
        yield from self._vrf("ft", *tuned["ft"])
        yield from self._vrf("dive", *tuned["dive"])

    def _best_rate(self, name: str) -> Classifier:
        """Train at every learning rate; the best on ID validation, the smaller rate on a tie."""
        from robustft.methods import make_method
        from robustft.train import TrainConfig, Trainer

        start = time.perf_counter()
        scores: dict[float, float] = {}
        best: Classifier | None = None
        for rate in sorted(self.options.lr):
            config = TrainConfig(
                epochs=self.options.epochs,
                batch_size=self.options.batch_size,
                lr=rate,
                wd=0.0,
                warmup=len(self.train) // self.options.batch_size,  # one epoch
                grad_clip_norm=1.0,
                seed=self.seed,
                val_frequency=0,
                device="cpu",
            )
            trainer = Trainer(
                make_method(name, **SETTINGS.get(name, {})),
                self.clip,
                self.train,
                self.val,
                config,
                templates=self.templates,
                reference=self.reference,
                progress=False,
            )
            classifier = trainer.run()
            assert trainer.val_top1 is not None
            if best is None or trainer.val_top1 > max(scores.values()):
                best = classifier
            scores[rate] = trainer.val_top1
        tried = "  ".join(f"{rate:g}: {100 * score:.1f}" for rate, score in scores.items())
        took = time.perf_counter() - start
        print(f"seed {self.seed}  {name:13} ID validation by rate  {tried}  ({took:.0f} s)")
        assert best is not None
        return best

    def _lines(self, method: str, after: dict[str, Outputs]) -> list[Record]:
        """Accuracies and kept geometry of one model."""
        identity = self._identity(method)
        return self.suite.records(after, **identity) + self._geometry(after, identity)

    def _geometry(self, after: dict[str, Outputs], identity: Record) -> list[Record]:
        return [
            self.suite.geometry_record(self.before, after, name, **identity)
            for name, entry in self.suite.entries.items()
            if entry.role == "forgetting"
        ]

    def _ensembles(
        self, base: str, classifier: Classifier, after: dict[str, Outputs]
    ) -> Iterator[Record]:
        """WiSE-FT and output ensembling over α."""
        from robustft.evaluate.curves import output_curve, wise_ft_curve

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
        from robustft.ensemble.vrf import VRF
        from robustft.evaluate.curves import fit_vrf, vrf_lines
        from robustft.evaluate.ratio import ratio_curve

        estimator = fit_vrf(VRF(), self.suite, self.zero_shot, classifier, self.train, self.val)
        who = {"base": base, "seed": self.seed}
        yield from vrf_lines(estimator, self.suite, before=self.before, after=after, **who)
        if base != "ft":
            return
        names = [n for n, entry in self.suite.entries.items() if entry.role in ("id", "ood")]
        curve = ratio_curve(
            torch.cat([estimator.distance(after[name].features) for name in names]),
            torch.cat([after[name].logits for name in names]),
            torch.cat([self.before[name].logits for name in names]),
            torch.cat([after[name].labels for name in names]),
        )
        for line in curve:
            yield {"role": "ratio", **who, **line}

    def _identity(self, method: str, **more: Any) -> Record:
        return {"method": method, "seed": self.seed, **more}

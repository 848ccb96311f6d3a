"""A set of datasets on which classifiers and ensembles of two are evaluated alike.

A dataset with the training classes (or some of them) uses the classifier's own head: the training
set's own test split has the role "id", the others "ood". A dataset with other classes measures what
the model has forgotten: a zero-shot head for its classes is made from the model's text tower.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from robustft.data.datasets import ImageDataset
from robustft.evaluate.collect import Outputs, collect
from robustft.evaluate.geometry import rsa_scores
from robustft.evaluate.metrics import top1
from robustft.models import Classifier, Clip

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One dataset of a suite, with its role: "id", "ood" or "forgetting"."""

    dataset: ImageDataset
    role: str


class Suite:
    """Datasets to evaluate on, for a model trained on `classnames`.

    clip: the pre-trained model, for its tokenizer and its templates' length; classnames: of the
    training set; templates: prompts for datasets that bring none of their own. The datasets must
    carry the model's evaluation transform.
    """

    def __init__(
        self,
        clip: Clip,
        classnames: list[str],
        templates: list[Any],
        datasets: Iterable[ImageDataset],
        *,
        id_name: str,
        batch_size: int = 256,
        device: str = "cpu",
    ) -> None:
        self.clip, self.classnames, self.templates = clip, list(classnames), templates
        self.batch_size, self.device = batch_size, device
        self.entries = {d.name: _entry(d, self.classnames, id_name) for d in datasets}

    def outputs(self, classifier: Classifier) -> dict[str, Outputs]:
        """Features, logits and labels of every dataset, by the dataset's name."""
        return {name: self._collect(classifier, entry) for name, entry in self.entries.items()}

    def records(
        self,
        outputs: Mapping[str, Outputs],
        scores: Callable[[Outputs, str], Tensor] | None = None,
        **identity: Any,
    ) -> list[Record]:
        """One result line a dataset. `scores(outputs, name)` replaces the logits of an ensemble;
        `identity` (method and seed; base, alpha, selected of an ensemble) is copied into each."""
        lines = []
        for name, entry in self.entries.items():
            out = outputs[name]
            logits = out.logits if scores is None else scores(out, name)
            accuracy = top1(logits, out.labels, out.class_subset)
            lines.append(
                {
                    "dataset": name,
                    "role": entry.role,
                    "split": entry.dataset.split,
                    **identity,
                    "n": len(out.labels),
                    f"{name}:top1": accuracy,
                }
            )
        return lines

    def geometry_record(
        self,
        pretrained: Mapping[str, Outputs],
        finetuned: Mapping[str, Outputs],
        name: str,
        **identity: Any,
    ) -> Record:
        """The RSA line of one dataset's image features, before and after fine-tuning."""
        before, after = pretrained[name], finetuned[name]
        return {
            "dataset": name,
            "role": "geometry",
            "split": self.entries[name].dataset.split,
            **identity,
            "n": len(before.features),
            **rsa_scores(before.features, after.features),
        }

    def _collect(self, classifier: Classifier, entry: Entry) -> Outputs:
        if entry.role == "forgetting":
            clip = dataclasses.replace(self.clip, model=classifier.clip)
            templates = entry.dataset.templates or self.templates
            classifier = Classifier.zero_shot(clip, entry.dataset.classnames, templates)
        return collect(classifier, entry.dataset, batch_size=self.batch_size, device=self.device)


def _entry(dataset: ImageDataset, classnames: list[str], id_name: str) -> Entry:
    if not set(dataset.classnames) <= set(classnames):
        return Entry(dataset, "forgetting")
    role = "id" if dataset.name == id_name else "ood"
    return Entry(_in_classes(dataset, classnames), role)


def _in_classes(dataset: ImageDataset, classnames: list[str]) -> ImageDataset:
    """`dataset` with its labels as indices into `classnames`, of which it may have a part."""
    if dataset.classnames == classnames:
        return dataset
    index = torch.tensor([classnames.index(name) for name in dataset.classnames])
    other = copy.copy(dataset)
    other.labels = index[dataset.labels]
    other.classnames = classnames
    other.class_subset = index.sort().values
    return other

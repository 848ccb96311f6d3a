"""A set of datasets on which classifiers and ensembles of two are evaluated alike.

A dataset with the training classes (or some of them) uses the classifier's own head: the training
set's own test split has the role "id", the others "ood". A dataset with other classes measures what
the model has forgotten: a zero-shot head for its classes is made from the model's text tower. Roles
are stated, or told by the classes (robustft.evaluate.roles). Datasets with captions in place of
classes are `captioned`, and measured by retrieval (robustft.evaluate.retrieval).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustft.accuracy import Predictions
from robustft.data.captioned import CaptionedDataset
from robustft.data.classes import LabelSpace
from robustft.data.datasets import ImageDataset
from robustft.data.regions import RegionDataset
from robustft.errors import InputError
from robustft.evaluate.collect import KeptImages, Outputs, autocast, collect_each, collect_stored
from robustft.evaluate.corruptions import corruption_fields
from robustft.evaluate.geometry import geometry_scores
from robustft.evaluate.metrics import (
    group_accuracies,
    least_group,
    mean_f1,
    measures,
    predictions,
)
from robustft.evaluate.retrieval import MEAN, Recalls, retrieve
from robustft.evaluate.roles import Entry, make_entry
from robustft.evaluate.sample_images import SetFile
from robustft.evaluate.samples import FIELD, Measured, Weighing
from robustft.evaluate.segmentation import segment, segmentation_measures
from robustft.evaluate.share import Share
from robustft.features import FeatureStore
from robustft.models import Classifier, Clip

Record = dict[str, Any]


class Suite:
    """Datasets to evaluate on, for a model trained on `classes`.

    clip: the pre-trained model, for its tokenizer and its templates' length; classes: of the
    training set, or their names alone; templates: prompts for datasets that bring none of their
    own. The datasets must carry the model's evaluation transform, and names of their own. id_name:
    the dataset that is the training data's own test set, or None; roles: those that are stated, by
    name; paths: where datasets come from, by name, for their result lines.

    Images are decoded by `workers` processes, and kept for the next model where they fit into
    `keep_bytes`. precision: of the forward passes, as in training. group: whose ranks share every
    pass over images (robustft.evaluate.collect). store: where models' features are kept, so that a
    later suite computes none of them again.

    Errors: InputError for two datasets of one name, a name in `roles` that no dataset has, or a
    role in doubt.
    """

    def __init__(
        self,
        clip: Clip,
        classes: LabelSpace | Sequence[str],
        templates: list[Any],
        datasets: Iterable[ImageDataset],
        *,
        id_name: str | None,
        roles: Mapping[str, str] | None = None,
        paths: Mapping[str, str] | None = None,
        batch_size: int = 256,
        device: str = "cpu",
        workers: int = 0,
        precision: str = "fp32",
        keep_bytes: int = 2**31,
        group: Any = None,
        store: FeatureStore | None = None,
    ) -> None:
        self.clip, self.templates = clip, templates
        if not isinstance(classes, LabelSpace):
            names = list(classes)
            classes = LabelSpace([str(label) for label in range(len(names))], names)
        self.classes, self.classnames = classes, classes.names
        self.batch_size, self.device = batch_size, device
        self.workers, self.precision, self.group = workers, precision, group
        self.store = store
        self.kept = KeptImages(keep_bytes)
        self.paths = dict(paths or {})
        self.entries: dict[str, Entry] = {}
        self.captioned: dict[str, Entry] = {}
        self._set_files: dict[str, SetFile] = {}
        stated = dict(roles or {})
        for dataset in datasets:
            name = dataset.name
            if name in self.entries or name in self.captioned:
                raise InputError(f"datasets: got two called {name!r}, expected different names")
            kind = self.captioned if isinstance(dataset, CaptionedDataset) else self.entries
            kind[name] = make_entry(
                dataset, self.classes, stated=stated.pop(name, None), own=name == id_name
            )
        if stated:
            known = ", ".join([*self.entries, *self.captioned])
            raise InputError(f"roles: got {next(iter(stated))!r}, expected some of {known}")

    def outputs(self, classifier: Classifier) -> dict[str, Outputs]:
        """Features, logits and labels of every dataset, by the dataset's name."""
        (found,) = self.outputs_each([classifier])
        return found

    def outputs_each(self, classifiers: Sequence[Classifier]) -> list[dict[str, Outputs]]:
        """As `outputs`, of several classifiers in one pass over the images."""
        found: list[dict[str, Outputs]] = [{} for _ in classifiers]
        for name, entry in self.entries.items():
            used = [self._for_entry(classifier, entry) for classifier in classifiers]
            for one, outputs in zip(found, self.collect_each(used, entry.dataset), strict=True):
                one[name] = outputs
        return found

    def collect(self, classifier: Classifier, dataset: ImageDataset) -> Outputs:
        """`robustft.evaluate.collect` as this suite does it, for data that are not part of it."""
        (found,) = self.collect_each([classifier], dataset)
        return found

    def collect_each(
        self, classifiers: Sequence[Classifier], dataset: ImageDataset
    ) -> list[Outputs]:
        """As `collect`, of several classifiers in one pass over the images; with a store, in one
        for each whose features are not there."""
        if self.store is not None:
            return [
                collect_stored(
                    classifier,
                    dataset,
                    self.store,
                    device=self.device,
                    precision=self.precision,
                    workers=self.workers,
                    group=self.group,
                )
                for classifier in classifiers
            ]
        return collect_each(
            classifiers,
            dataset,
            batch_size=self.batch_size,
            device=self.device,
            precision=self.precision,
            workers=self.workers,
            kept=self.kept,
            group=self.group,
        )

    def retrieve(self, classifier: Classifier) -> dict[str, Recalls]:
        """The recalls of a classifier's towers on every captioned dataset, by its name."""
        return {
            name: self.retrieve_in(classifier, entry.dataset)
            for name, entry in self.captioned.items()
        }

    def retrieve_in(self, classifier: Classifier, dataset: ImageDataset) -> Recalls:
        """As `retrieve`, on captioned data that are not part of the suite."""
        assert isinstance(dataset, CaptionedDataset)
        with autocast(torch.device(self.device), self.precision):
            return retrieve(
                classifier.clip,
                self.clip.tokenizer,
                dataset,
                batch_size=self.batch_size,
                device=self.device,
                workers=self.workers,
                kept=self.kept,
                share=Share(self.group),
            )

    def retrieval_records(self, found: Mapping[str, Recalls], **identity: Any) -> list[Record]:
        """One result line a captioned dataset; identity: as for `records`."""
        return [
            {
                **self._facts(name, entry, identity),
                "n": found[name].images,
                "captions": found[name].captions,
                **{f"{name}:{key}": value for key, value in found[name].values.items()},
                f"{name}:{MEAN}": found[name].mean,
            }
            for name, entry in self.captioned.items()
        ]

    def records(
        self,
        outputs: Mapping[str, Outputs],
        scores: Callable[[Outputs, str], Tensor] | None = None,
        **identity: Any,
    ) -> list[Record]:
        """One result line a dataset. `scores(outputs, name)` replaces the logits of an ensemble;
        `identity` (method and seed; base, alpha, selected of an ensemble) is copied into each."""

        def of(name: str) -> Tensor:
            out = outputs[name]
            return out.logits if scores is None else scores(out, name)

        found = {
            name: predictions(of(name), out.labels, out.class_subset)
            for name, out in outputs.items()
            if name in self.entries
        }
        return self.records_of(outputs, found, of, **identity)

    def records_of(
        self,
        outputs: Mapping[str, Outputs],
        found: Mapping[str, Predictions],
        scores: Callable[[str], Tensor],
        *,
        weighing: Mapping[str, Weighing] | None = None,
        **identity: Any,
    ) -> list[Record]:
        """As `records`, of predictions; outputs: whose labels and groups count; scores: those of a
        set's samples, asked for where regions make up a segmentation.

        Lines that are selected carry what they were measured on, sample by sample, for
        `append_result` to write; weighing: what a VRF has beside it.
        """
        lines = []
        for name, entry in self.entries.items():
            out, one = outputs[name], found[name]
            subset = out.class_subset
            classes = out.logits.shape[1] if subset is None else len(subset)
            values = measures(one, out.labels, classes)
            kept: Record = {}
            if identity.get("selected", True):
                kept[FIELD] = Measured(
                    out.labels, one, out.index, self._set_file(name), (weighing or {}).get(name)
                )
            lines.append(
                {
                    **self._facts(name, entry, identity),
                    "n": len(out.labels),
                    **{f"{name}:{measure}": value for measure, value in values.items()},
                    **_own_metrics(entry.dataset, name, one.predicted, out),
                    **self._segmentation(entry.dataset, name, out, scores),
                    **kept,
                    **corruption_fields(name, entry.dataset.corrupted, values["top1"]),
                }
            )
        return lines

    def _facts(self, name: str, entry: Entry, identity: Record) -> Record:
        """What any result line of a dataset begins with."""
        path = {"path": self.paths[name]} if name in self.paths else {}
        return {
            "dataset": name,
            "role": entry.role,
            "split": entry.dataset.split,
            **path,
            "model": self.clip.name,
            "pretrained": self.clip.pretrained,
            **identity,
        }

    def geometry_record(
        self,
        pretrained: Mapping[str, Outputs],
        finetuned: Mapping[str, Outputs],
        name: str,
        **identity: Any,
    ) -> Record:
        """The geometry line of one dataset's image features, before and after fine-tuning."""
        before, after = pretrained[name], finetuned[name]
        return {
            "dataset": name,
            "role": "geometry",
            "split": self.entries[name].dataset.split,
            **identity,
            "n": len(before.features),
            **geometry_scores(before.features, after.features),
        }

    def _set_file(self, name: str) -> SetFile:
        """One of each set, so that its thumbnails are made once."""
        dataset = self.entries[name].dataset
        if name not in self._set_files or self._set_files[name].dataset is not dataset:
            self._set_files[name] = SetFile(dataset)
        return self._set_files[name]

    def _segmentation(
        self, dataset: ImageDataset, name: str, out: Outputs, scores: Callable[[str], Tensor]
    ) -> Record:
        """What the maps are measured by that a set's regions make up; nothing of other sets."""
        if not isinstance(dataset, RegionDataset):
            return {}
        confusion = segment(
            dataset,
            scores(name),
            rows=out.index,
            class_subset=out.class_subset,
            device=self.device,
            share=Share(self.group),
        )
        found = segmentation_measures(confusion)
        if out.class_subset is not None:  # the others are other names, or of other data
            found["iou"] = [found["iou"][label] for label in out.class_subset.tolist()]
        return {f"{name}:{measure}": value for measure, value in found.items()}

    def _for_entry(self, classifier: Classifier, entry: Entry) -> Classifier:
        """The classifier itself, or, for other classes, its towers with a zero-shot head."""
        if entry.role != "forgetting":
            return classifier
        clip = dataclasses.replace(self.clip, model=classifier.clip)
        templates = entry.dataset.templates or self.templates
        return Classifier.zero_shot(clip, entry.dataset.classnames, templates)


def _own_metrics(dataset: ImageDataset, name: str, predicted: Tensor, out: Outputs) -> Record:
    """What the data set is measured by beside top-1."""
    found: Record = {}
    if "macro-f1" in dataset.metrics:
        found[f"{name}:macro-f1"] = mean_f1(predicted, out.labels)
    if "worst-group" in dataset.metrics and out.groups is not None:
        worst, group = least_group(predicted == out.labels, out.groups)
        found[f"{name}:worst-group"] = worst
        found[f"{name}:worst-group-is"] = dataset.group_names[group]
    if "each-group" in dataset.metrics and out.groups is not None:
        each = group_accuracies(predicted == out.labels, out.groups)
        found[f"{name}:each-group"] = {dataset.group_names[g]: top1 for g, top1 in each.items()}
    return found

"""The suites of iWildCam, FMoW, CIFAR-10 and Entity-30 from their files to their measures."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from robustft.cli.app import run
from robustft.evaluate.results import read_results
from robustft.evaluate.samples import samples_of
from tests.layouts import FMOW_REGIONS, breeds, cifar, fmow, iwildcam

TINY = ["--model", "robustft-tiny", "--template", "photo", "--device", "cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for write in (cifar, iwildcam, fmow, breeds):
        write(folder)
    return folder


def evaluated(root, tmp_path, suite):
    """The result lines of a suite, by data set."""
    results = tmp_path / "r.jsonl"
    given = ["--suite", f"partial:{suite}", "--data-location", str(root)]
    assert run(["eval", *given, *TINY, "--results-db", str(results)]) == 0
    return {line["dataset"]: line for line in read_results(results)}


def said(line):
    """Labels and predictions, image by image."""
    samples = samples_of(line)
    return samples.labels.numpy(), samples.said.predicted.numpy()


def test_iwildcam_is_measured_by_macro_f1(root, tmp_path):
    found = evaluated(root, tmp_path, "iwildcam")
    assert [(name, x["role"], x["n"]) for name, x in found.items()] == [
        ("iWildCam", "id", 8),
        ("iWildCam (OOD)", "ood", 8),
    ]
    for name, line in found.items():
        labels, predicted = said(line)
        assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        expected = f1_score(
            labels, predicted, labels=np.unique(labels), average="macro", zero_division=0
        )
        assert line[f"{name}:macro-f1"] == pytest.approx(expected)


def test_fmow_is_measured_by_its_worst_region(root, tmp_path):
    found = evaluated(root, tmp_path, "fmow")
    assert [(x["role"], x["n"]) for x in found.values()] == [("id", 8), ("ood", 16)]
    with open(root / "fmow_v1.1" / "rgb_metadata.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    for line, years in zip(found.values(), (range(2013), range(2016, 2020)), strict=True):
        own = [row for row in rows if int(row["timestamp"][:4]) in years]
        labels, predicted = said(line)
        assert labels.tolist() == [["airport", "zoo_park"].index(row["category"]) for row in own]
        regions = np.array([FMOW_REGIONS.get(row["country_code"]) for row in own])
        by_region = {
            region: (predicted == labels)[regions == region].mean()
            for region in FMOW_REGIONS.values()
        }
        name = line["dataset"]
        assert line[f"{name}:worst-group"] == pytest.approx(min(by_region.values()))
        assert by_region[line[f"{name}:worst-group-is"]] == line[f"{name}:worst-group"]


def test_cifars_suite_has_cifars_labels_everywhere(root, tmp_path):
    found = evaluated(root, tmp_path, "cifar10")
    assert [(name, x["role"], x["n"]) for name, x in found.items()] == [
        ("CIFAR-10", "id", 20),
        ("CIFAR-10.1", "ood", 20),
        ("CIFAR-10.2", "ood", 20),
        ("STL-10", "ood", 18),
    ]
    labels, predicted = said(found["STL-10"])
    assert set(labels) == set(range(10)) - {6}, "no frog"
    assert 6 not in predicted, "a class that does not occur is not among those to choose from"


def test_entity30_is_recognised_by_its_superclasses_names(root, tmp_path):
    found = evaluated(root, tmp_path, "entity30")
    assert [(name, x["role"], x["n"]) for name, x in found.items()] == [
        ("Entity-30", "id", 8),
        ("Entity-30 (target)", "ood", 8),
    ]
    for line in found.values():
        labels, predicted = said(line)
        assert labels.tolist() == [0] * 4 + [1] * 4
        assert set(predicted) <= {0, 1}
        assert line[f"{line['dataset']}:top1"] == (labels == predicted).mean()


def test_fine_tuning_on_the_source_is_evaluated_on_the_target(root, tmp_path):
    train = ["train", "--method", "ft", "--epochs", "1", "--batch-size", "8", "--warmup", "0"]
    data = ["--data", "partial:entity30", "--suite", "partial:entity30", "--zero-shot", "inks"]
    where = ["--data-location", str(root), "--logs", str(tmp_path), "--name", "r", "--aug", "none"]
    assert run([*train, *data, *where, *TINY]) == 0
    lines = [json.loads(x) for x in (tmp_path / "r" / "results.jsonl").read_text().splitlines()]
    roles = {x["dataset"]: x["role"] for x in lines if x["method"] == "ft" and "role" in x}
    assert roles["Entity-30 (target)"] == "ood"

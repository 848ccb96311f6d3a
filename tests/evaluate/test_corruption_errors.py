"""CE and mCE by AlexNet's published errors, and corruptions put together for a table."""

import numpy as np
import pytest

from robustft.data.corruptions.names import NAMES, Corrupted, Corruption
from robustft.evaluate.corruptions import ALEXNET, corruption_fields, summary, together
from robustft.report.further import further
from robustft.report.table import make_table

# AlexNet's errors by severity, three rows of the published table (arXiv 1903.12261, its release).
BY_SEVERITY = {
    "gaussian-noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot-noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "glass-blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
}


def record(name, top1, method="ft", seed=0, **more):
    dataset = f"ImageNet-C ({name})"
    found = {"dataset": dataset, "role": "ood", "split": "test", "method": method, "base": None}
    found |= {"alpha": None, "selected": True, "seed": seed, "n": 250, f"{dataset}:top1": top1}
    under = Corrupted(Corruption(name), "ImageNet-C", imagenet=True)
    return found | corruption_fields(dataset, under, top1) | more


def test_alexnets_errors_are_means_over_severities():
    for name, errors in BY_SEVERITY.items():
        assert ALEXNET[name] == pytest.approx(np.mean(errors), abs=1e-9)
    assert tuple(ALEXNET) == NAMES


def test_alexnet_itself_has_an_mce_of_one():
    found = together(record(name, 1 - ALEXNET[name]) for name in NAMES)
    (line,) = found
    assert line["dataset"] == "ImageNet-C"
    assert line["ImageNet-C:mce"] == pytest.approx(1)
    assert line["ImageNet-C:top1"] == pytest.approx(1 - np.mean(list(ALEXNET.values())))
    assert line["n"] == 250, "the same images under each"
    assert summary([record(name, 1 - ALEXNET[name]) for name in NAMES]) == [
        "ImageNet-C: 21.10, the mean of 15 corruptions; mCE 100.0 (AlexNet: 100)"
    ]


def test_lines_of_no_data_set_are_nothing_to_put_together():
    ratio = {"role": "ratio", "method": "vrf", "seed": 0, "n": 9, "distance": 0.5}
    assert together([ratio]) == [ratio]
    assert summary([ratio]) == []


def test_a_ce_is_of_imagenet_at_all_severities_alone():
    under = Corrupted(Corruption("fog"), "x", imagenet=True)
    assert corruption_fields("x (fog)", under, 0.5)["x (fog):ce"] == pytest.approx(0.5 / 0.819324)
    assert "x (fog):ce" not in corruption_fields("x (fog)", Corrupted(Corruption("fog"), "x"), 0.5)
    one = Corrupted(Corruption("fog", 3), "x", imagenet=True)
    assert corruption_fields("x (fog 3)", one, 0.5) == {}
    assert corruption_fields("x", None, 0.5) == {}


def test_images_are_counted_once_however_often_they_are_shown():
    lines = [record(name, 0.5) for name in NAMES[:2]]
    for line in lines:
        line[f"{line['dataset']}:each-group"] = {f"severity {s}": 0.5 for s in range(1, 6)}
    assert [line["n"] for line in together(lines)] == [50]


def test_models_seeds_and_points_of_a_curve_stay_apart():
    points = [(m, s, a) for m in ("ft", "flyp") for s in (0, 1) for a in (0.0, 0.5)]
    lines = [
        record(name, 0.1 * i + 0.01 * j, method, seed, alpha=alpha)
        for i, (method, seed, alpha) in enumerate(points)
        for j, name in enumerate(NAMES[:4])
    ]
    other = {**record("fog", 0.5), "dataset": "Sketch", "Sketch:top1": 0.5}
    del other["corruption"]
    found = together([*lines, other])
    assert [(r["method"], r["seed"], r["alpha"]) for r in found[:-1]] == points
    assert found[-1] == other
    for i, one in enumerate(found[:-1]):
        assert one["dataset"] == "ImageNet-C, 4 of 15"
        assert one["ImageNet-C, 4 of 15:top1"] == pytest.approx(0.1 * i + 0.015)
        assert "ImageNet-C, 4 of 15:mce" not in one
        assert list(one["top1_by_corruption"]) == list(NAMES[:4])
    assert together(found) == found


def test_sets_of_one_name_stay_apart():
    lines = [
        record(name, top1, path=f"{name}:/{place}/images")
        for place, top1 in (("a", 0.2), ("b", 0.6))
        for name in NAMES[:2]
    ]
    assert [one["path"] for one in together(lines)] == ["/a/images", "/b/images"]
    table = make_table(lines)
    heads = [f"ImageNet-C, 2 of 15 ({place}/images)" for place in "ab"]
    assert [name for name, _ in table.columns][:2] == heads
    assert [cell.text for cell in table.rows[0][1]][:2] == ["20.0", "60.0"]


def test_a_table_has_one_column_for_all_of_them_and_the_least_mce_is_best():
    lines = [record(name, top1, m) for m, top1 in (("ft", 0.4), ("flyp", 0.5)) for name in NAMES]
    sketches = [
        {**record("fog", 0.8, method), "dataset": "Sketch", "Sketch:top1": 0.8}
        for method in ("ft", "flyp")
    ]
    for one in sketches:
        del one["corruption"]
    table = make_table([*lines, *sketches])
    heads = ["ImageNet-C", "Sketch", "OOD mean", "ImageNet-C mCE"]
    assert [name for name, _ in table.columns] == heads
    (_, ft), (_, flyp) = table.rows
    mce = [100 * np.mean([error / a for a in ALEXNET.values()]) for error in (0.6, 0.5)]
    assert [cell.text for cell in ft] == ["40.0", "80.0", "60.0", f"{mce[0]:.1f}"]
    assert [cell.text for cell in flyp] == ["50.0", "80.0", "65.0", f"{mce[1]:.1f}"]
    assert [cell.best for cell in ft] == [False, True, False, False]
    assert flyp[3].best


def test_a_report_has_a_table_of_them_beside():
    lines = [
        record(name, 0.01 * (i + 10 * seed), method, seed)
        for method, seed in (("ft", 0), ("ft", 1), ("flyp", 0))
        for i, name in enumerate(NAMES)
    ]
    (one,) = [one for one in further(lines) if one.title == "Corruptions"]
    assert [name for name, _ in one.table.columns] == [
        "ImageNet-C",
        *(name.replace("-", " ") for name in NAMES),
    ]
    (_, ft), (_, flyp) = one.table.rows
    assert [cell.text for cell in ft[:3]] == ["12.0 ± 7.1", "5.0 ± 7.1", "6.0 ± 7.1"]
    assert [cell.text for cell in flyp[:3]] == ["7.0", "0.0", "1.0"]
    assert not [one for one in further(lines[:1]) if one.title == "Corruptions"]

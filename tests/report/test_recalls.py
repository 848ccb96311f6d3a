"""Sets with captions in a report: their mean recall beside top-1."""

import pytest

from robustft.evaluate.results import check_result, headline
from robustft.evaluate.retrieval import MEASURES
from robustft.report import table
from robustft.report.page.overview import intervals, small_table
from robustft.report.series import calibration_error, means_by_row


def line(role, dataset, method, value, **more):
    record = {"dataset": dataset, "role": role, "split": "test", "method": method}
    record |= {"seed": 0, "n": 50, f"{dataset}:top1": value, f"{dataset}:ece": 0.1}
    return check_result(record | more)


def recalled(role, dataset, method, value, **more):
    record = {"dataset": dataset, "role": role, "split": "test", "method": method}
    record |= {"seed": 0, "n": 50, "captions": 250, f"{dataset}:mean-recall": value}
    return check_result(record | {f"{dataset}:{name}": value for name in MEASURES} | more)


MIXED = [
    line("id", "Digits", "ft", 0.9),
    line("ood", "Fonts", "ft", 0.5),
    recalled("ood", "Flickr30k", "ft", 0.7),
    line("forgetting", "Letters", "ft", 0.4),
]


def test_a_column_says_that_it_is_mean_recall_and_counts_in_the_means():
    head, _, body = (
        [cell.strip() for cell in row.strip("| ").split("|")] for row in table(MIXED).splitlines()
    )
    assert head == [
        "Method",
        "Digits (ID)",
        "Fonts",
        "Flickr30k, mean recall",
        "OOD mean",
        "Letters",
    ]
    assert body == ["FT", "90.0", "50.0", "70.0", "60.0", "40.0"]
    (found,) = means_by_row(MIXED, ("ood",), headline).values()
    assert found == {0: pytest.approx(0.6)}
    (found,) = means_by_row(MIXED, ("ood",), calibration_error).values()
    assert found == {0: pytest.approx(0.1)}, "which has no captions"


def test_a_mean_with_recalls_in_it_has_no_interval_of_a_share():
    found = intervals(MIXED)
    assert {role for _, role in found} == {"id", "forgetting"}
    ((_, cells),) = small_table(MIXED).rows
    assert [cell.mean for cell in cells[:3]] == [pytest.approx(x) for x in (0.9, 0.6, 0.4)]


def test_recalls_follow_a_set_that_is_renamed():
    two = [
        recalled("ood", "Flickr30k", "ft", 0.7, path="/a/flickr"),
        recalled("ood", "Flickr30k", "flyp", 0.2, path="/b/flickr"),
    ]
    printed = table(two)
    assert "Flickr30k (a/flickr), mean recall" in printed
    assert "70.0" in printed
    assert "20.0" in printed


def test_a_line_with_a_mean_recall_needs_the_six():
    from robustft.errors import InputError

    broken = recalled("ood", "Flickr30k", "ft", 0.7)
    del broken["Flickr30k:text-to-image-R@5"]
    with pytest.raises(InputError, match="Flickr30k:text-to-image-R@5: missing"):
        check_result(broken)
    with pytest.raises(InputError, match="expected a value from 0"):
        check_result(recalled("ood", "Flickr30k", "ft", 0.7) | {"Flickr30k:mean-recall": 70.0})
    with pytest.raises(InputError, match="captions: missing"):
        check_result({k: v for k, v in recalled("ood", "F", "ft", 0.7).items() if k != "captions"})

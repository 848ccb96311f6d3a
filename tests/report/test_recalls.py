"""Sets with captions in a report: their mean recall beside top-1."""

import json

import pytest

pytest.importorskip("huggingface_hub")
pytest.importorskip("jinja2")

from robustft.errors import InputError
from robustft.evaluate.foreign import read_any
from robustft.evaluate.results import check_result, headline
from robustft.evaluate.retrieval import MEASURES
from robustft.report import make_table, table
from robustft.report.card import CardFacts, model_card
from robustft.report.page import details, paragraph
from robustft.report.page.overview import intervals, small_table
from robustft.report.series import calibration_error, means_by_row
from robustft.report.tidy import clip_benchmark


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


def test_a_card_and_the_page_name_what_was_evaluated():
    from robustft.report import page

    mapped = line("forgetting", "ADE20K", "ft", 0.3, **{"ADE20K:miou": 0.2})
    shape = {"dataset": "ADE20K", "role": "geometry", "split": "test", "method": "ft"}
    shape |= {"seed": 0, "n": 50, "RSA:euclidean": 0.9, "RSA:cosine": 0.8}
    records = [*MIXED, mapped, check_result(shape)]
    lines = model_card(CardFacts(title="x", load="pass"), records).splitlines()
    rows = [[cell.strip() for cell in text.strip("|").split("|")] for text in lines if "|" in text]
    sizes = {row[0]: row[-1] for row in rows if len(row) == 5}
    assert sizes["Data set"] == "Measured on"
    assert sizes["Digits"] == "50 images"
    assert sizes["Flickr30k"] == "50 images, 250 captions"
    assert sizes["ADE20K"] == "50 regions"
    report = page.Report(records, records, make_table(records))
    shown = details.data_sets(report).data["rows"]
    assert [row[-1] for row in shown if row[0] == "ADE20K"] == ["50 regions", "50 regions"]
    assert [row[-1] for row in shown if row[0] == "Flickr30k"] == ["50 images, 250 captions"]
    assert "We report top-1 accuracy, mean recall and mIoU: " in " ".join(
        paragraph.sentences(records, records)
    )


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
    broken = recalled("ood", "Flickr30k", "ft", 0.7)
    del broken["Flickr30k:text-to-image-R@5"]
    with pytest.raises(InputError, match="Flickr30k:text-to-image-R@5: missing"):
        check_result(broken)
    with pytest.raises(InputError, match="expected a value from 0"):
        check_result(recalled("ood", "Flickr30k", "ft", 0.7) | {"Flickr30k:mean-recall": 70.0})
    with pytest.raises(InputError, match="captions: missing"):
        check_result({k: v for k, v in recalled("ood", "F", "ft", 0.7).items() if k != "captions"})


def test_clip_benchmark_s_form_and_back(tmp_path):
    lines = [x for x in MIXED if x["dataset"] == "Flickr30k"]
    lines[0]["Flickr30k:text-to-image-R@1"] = 0.1
    (one,) = clip_benchmark(lines)
    assert one["task"] == "zeroshot_retrieval"
    assert one["metrics"]["image_retrieval_recall@1"] == 0.1, "images are what is found there"
    assert one["metrics"]["text_retrieval_recall@1"] == 0.7
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps(one) + "\n")
    (again,) = read_any(path)
    same = ("role", "method", "captions", "n", *(f"Flickr30k:{name}" for name in MEASURES))
    assert {key: again[key] for key in same} == {key: lines[0][key] for key in same}
    assert again["Flickr30k:mean-recall"] == pytest.approx((5 * 0.7 + 0.1) / 6)
    theirs = {"dataset": "wds/flickr30k", "model": "ViT-B-32", "pretrained": "openai"}
    metrics = {"image_retrieval_recall@5": 0.8, "text_retrieval_recall@5": 0.9}
    path.write_text(json.dumps(theirs | {"metrics": metrics}) + "\n")
    with pytest.raises(InputError, match="recall both ways at 1, 5 and 10"):
        read_any(path)

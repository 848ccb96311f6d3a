"""Methods on the same images: paired tests by hand, which images are shown, and files that are not
what they were."""

import base64
import io
import os
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from scipy.stats import binomtest

from robustft.accuracy import Predictions
from robustft.data.datasets import ImageDataset
from robustft.data.images import FileImages
from robustft.errors import InputWarning
from robustft.evaluate import append_result, read_results
from robustft.evaluate.sample_images import SetFile
from robustft.evaluate.samples import Measured, Weighing
from robustft.report import image_choice, write_report
from robustft.report.album import Album
from robustft.report.outcomes import read_outcomes
from robustft.report.versus import against, holm, reference_of

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

NAMES = ["cat", "dog", "<b>ant</b>"]
SETS = {"Home": "id", "Away": "ood", "Far": "ood"}
SHARE = {("zero-shot", None): 0.6, ("ft", None): 0.8, ("dive", None): 0.85, ("vrf", "ft"): 0.9}


def pictures(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 20, 3), dtype=np.uint8)


def written(folder, *, seeds=1, count=60, sets=SETS, methods=SHARE, images=None, split="test"):
    """A results file with samples. images: of a set, its pixels or its files."""
    path = folder / "results.jsonl"
    for seed in range(seeds):
        for number, (name, role) in enumerate(sets.items()):
            rng = np.random.default_rng(100 * number + seed)
            labels = torch.from_numpy(rng.integers(0, 3, count))
            pixels = pictures(count, number) if images is None else images(name)
            data = ImageDataset(pixels, labels, classnames=NAMES, name=name, split=split)
            file = SetFile(data)
            for (method, base), share in methods.items():
                said = answers(labels, share, rng)
                weighing = None
                if method == "vrf":
                    distance = torch.from_numpy(rng.random(count)).float()
                    ends = [answers(labels, share, rng) for _ in range(2)]
                    weighing = Weighing(distance, 1 - distance, *ends)
                top1 = float((said.predicted == labels).double().mean())
                record = {"dataset": name, "role": role, "split": split, "method": method}
                record |= {"base": base, "seed": seed, "n": count, f"{name}:top1": top1}
                record["samples"] = Measured(labels, said, None, file, weighing)
                append_result(path, record)
    return read_results(path)


def answers(labels, share, rng):
    hit = torch.from_numpy(rng.random(len(labels)) < share)
    confidence = torch.from_numpy(rng.random(len(labels))).float()
    return Predictions(torch.where(hit, labels, (labels + 1) % 3), confidence)


def by_hand(records, method, against, name, seed):
    """Which images only the one has right, and only the other, by NumPy from the files."""
    right = []
    for who in (method, against):
        (line,) = [
            r for r in records if (r["method"], r["dataset"], r["seed"]) == (who, name, seed)
        ]
        columns = load_file(line["samples"].folder / line["samples"])
        right.append(columns["label"] == columns["predicted"])
    return int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())


def test_paired_tests_are_those_of_the_counts_and_seeds_are_paired_one_by_one(tmp_path):
    records = written(tmp_path, seeds=2)
    sets = read_outcomes(records).sets
    assert reference_of(sets) == ("ft", None)
    found = against(sets, ("ft", None))
    assert [(one.dataset, one.role) for one in found] == list(SETS.items())
    for one in found:
        assert [line.row[0] for line in one.rows] == ["zero-shot", "dive", "vrf"]
        for line in one.rows:
            counts = [by_hand(records, line.row[0], "ft", one.dataset, seed) for seed in (0, 1)]
            assert (line.gained, line.lost) == tuple(map(sum, zip(*counts, strict=True)))
            assert (line.n, line.seeds) == (120, 2)
            own = [100 * (b - c) / 60 for b, c in counts]
            assert line.difference == pytest.approx(np.mean(own))
            assert line.low <= line.difference <= line.high
            if all(0 < b + c < 25 for b, c in counts):
                exact = [binomtest(b, b + c).pvalue for b, c in counts]
                assert line.p == pytest.approx(min(1, 2 * np.mean(exact)))
    every = [line for one in found for line in one.rows]
    order = sorted(every, key=lambda line: line.p)
    steps = [min(1, (len(every) - i) * line.p) for i, line in enumerate(order)]
    assert [line.adjusted for line in order] == pytest.approx(np.maximum.accumulate(steps))
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # worked by hand


def test_without_plain_fine_tuning_the_zero_shot_model_is_the_reference(tmp_path):
    methods = {row: share for row, share in SHARE.items() if row[0] in ("zero-shot", "dive")}
    sets = read_outcomes(written(tmp_path, methods=methods)).sets
    assert reference_of(sets) == ("zero-shot", None)
    assert reference_of([]) is None


def test_samples_of_other_images_are_not_compared(tmp_path):
    """Two results files whose sets have one name and different images."""
    first = written(tmp_path / "a", methods={("ft", None): 0.8})
    second = written(
        tmp_path / "b", methods={("dive", None): 0.8}, images=lambda name: pictures(60, 77)
    )
    sets = read_outcomes(first + second).sets
    assert len(sets) == 2 * len(SETS)
    assert against(sets, ("ft", None)) == []


def test_images_on_which_methods_differ_are_right_by_one_and_wrong_by_another(tmp_path):
    sets = read_outcomes(written(tmp_path)).sets
    found = image_choice.differing(sets, Album())
    assert [card.dataset for card in found] == sorted(
        (card.dataset for card in found), key=list(SETS).index
    )
    assert {name: sum(c.dataset == name for c in found) for name in SETS} == dict.fromkeys(SETS, 8)
    gained = 0
    for card in found:
        assert {answer.right for answer in card.answers} == {True, False}
        assert card.answers[0].right
        assert card.answers[0].predicted == card.image.label
        who = [name for answer in card.answers for name, _ in answer.by]
        assert sorted(who) == ["DiVE", "FT", "VRF", "Zero-shot"]
        gained += "Zero-shot" not in [name for name, _ in card.answers[0].by]
    assert gained == len(found) / 2


def test_near_and_far_are_the_ends_of_the_distances_at_most_two_of_a_set(tmp_path):
    records = written(tmp_path)
    (found,) = image_choice.near_and_far(read_outcomes(records).sets, Album())
    assert found.name == "VRF"
    ends = {}
    for r in records:
        if r["method"] == "vrf":
            columns = load_file(r["samples"].folder / r["samples"])
            ends[r["dataset"]] = columns["distance"], columns
    near = sorted(d for distance, _ in ends.values() for d in np.sort(distance)[:2])
    far = sorted(d for distance, _ in ends.values() for d in np.sort(distance)[-2:])
    assert [card.distance for card in found.near] == pytest.approx(near)
    assert [card.distance for card in found.far] == pytest.approx(far[::-1])
    for card in (*found.near, *found.far):
        distance, columns = ends[card.dataset]
        (place,) = np.flatnonzero(distance == np.float32(card.distance))
        assert card.weight == pytest.approx(columns["weight"][place])
        for (who, said, confidence, right), prefix in zip(
            card.answers, ("zeroshot.", "finetuned.", ""), strict=True
        ):
            assert who in ("Zero-shot", "FT", "VRF")
            assert said == NAMES[columns[f"{prefix}predicted"][place]]
            assert confidence == pytest.approx(columns[f"{prefix}confidence"][place])
            assert right == (columns[f"{prefix}predicted"][place] == columns["label"][place])


class Images(HTMLParser):
    """Every image of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img" and dict(attributes).get("class") == "small":
            self.found.append(dict(attributes))


def page(records, folder):
    write_report(records, folder)
    return (folder / "report.html").read_text()


def test_the_page_holds_small_pictures_with_words_and_is_the_same_each_time(tmp_path):
    records = written(tmp_path)
    text = page(records, tmp_path / "one")
    assert text == page(records, tmp_path / "two")
    found = Images(text).found
    assert len(found) == 3 * 6 + 24 + 2 * 6
    for image in found:
        data = base64.b64decode(image["src"].partition("base64,")[2])
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.size == (int(image["width"]), int(image["height"])) == (20, 24)
        assert re.fullmatch(r"Image \d+ of (Home|Away|Far), labelled .+", image["alt"])
    assert "<b>ant" not in text
    assert "&lt;b&gt;ant&lt;/b&gt;" in text
    strip = text[text.index('id="images"') : text.index('id="near-far"')]
    assert strip.count("<img") == 18


def test_pictures_stop_at_their_budget(tmp_path):
    sets = read_outcomes(written(tmp_path)).sets
    album = Album(budget=12_000)
    strips = image_choice.strips(sets, album)
    cards = image_choice.differing(sets, album)
    shown = [image for strip in strips for image in strip.images]
    sizes = [sum(len(image.picture.uri) for image in found)
             for found in (shown, [card.image for card in cards])]  # fmt: skip
    assert len(strips) < len(sets), "half of it is left to others"
    assert cards
    assert 10_000 < sum(sizes) <= 12_000
    assert album.full


def files(folder, count=60):
    """Image files, drawn anew for each set."""

    def draw(name):
        (folder / name).mkdir(parents=True, exist_ok=True)
        paths = [folder / name / f"{i}.png" for i in range(count)]
        for path, pixels in zip(paths, pictures(count, len(name)), strict=True):
            if not path.exists():
                Image.fromarray(pixels).resize((160, 200)).save(path)
        return FileImages(paths)

    return draw


def bomb():
    """A PNG of a few bytes that says it has 400 million pixels."""
    held = io.BytesIO()
    Image.new("1", (8, 8)).save(held, "PNG")
    data = bytearray(held.getvalue())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_files_that_are_gone_or_hostile_are_skipped_with_a_note(tmp_path):
    records = written(tmp_path, images=files(tmp_path / "images"))
    whole = Images(page(records, tmp_path / "whole")).found
    assert {(image["width"], image["height"]) for image in whole} == {("77", "96")}
    for number, path in enumerate(sorted((tmp_path / "images" / "Away").iterdir())):
        path.unlink()
        if number % 5 == 1:
            path.write_bytes(b"<svg onload=alert(1)>")
        elif number % 5 == 2:
            path.write_bytes(bomb())
        elif number % 5 == 3:
            os.mkfifo(path)
        elif number % 5 == 4:
            path.mkdir()
    text = page(records, tmp_path / "damaged")
    found = Images(text).found
    assert {image["alt"].split()[3].strip(",") for image in found} == {"Home", "Far"}
    assert "images could not be shown: the file is gone, or no image that can be read" in text
    assert "onload" not in text


def test_samples_that_are_gone_or_damaged_are_a_note_and_the_report_is_made(tmp_path):
    records = written(tmp_path)
    lines = [r for r in records if r["method"] == "dive"]
    (tmp_path / lines[0]["samples"]).unlink()
    path = tmp_path / lines[1]["samples"]
    path.write_bytes(path.read_bytes()[:-20])
    for path in (tmp_path / "samples").glob("set-Far*"):
        path.write_bytes(b"no set")
    with pytest.warns(InputWarning, match=r"left out of the report: .*dive.* \(and 1 more\)"):
        text = page(records, tmp_path / "out")
    assert "No such file" in text
    assert "not a whole safetensors file" in text
    assert "DiVE" in text
    assert {image["alt"].split()[3].strip(",") for image in Images(text).found} == {"Home", "Away"}


def test_every_corruption_has_its_own_images(tmp_path):
    """Though the tables have one column for all of them."""
    records = written(tmp_path, sets={"Home": "id", "Home fog": "ood", "Home snow": "ood"})
    for r in records:
        if r["dataset"] != "Home":
            r |= {"corruption": r["dataset"].split()[1], "together": "Home-C"}
    text = page(records, tmp_path / "out")
    assert "C, 2 of 15" in (tmp_path / "out" / "table.md").read_text()
    found = {image["alt"].partition(" of ")[2].split(",")[0] for image in Images(text).found}
    assert found == {"Home", "Home fog", "Home snow"}
    assert re.findall(r'"Paired tests on ([^"]+)"', text) == ["Home"]


def test_a_report_without_samples_has_no_such_sections(tmp_path):
    records = [{k: v for k, v in r.items() if k != "samples"} for r in written(tmp_path)]
    text = page(records, tmp_path / "out")
    for name in ("images", "near-far", "differing", "paired"):
        assert f'id="{name}"' not in text

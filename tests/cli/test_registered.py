"""Registered data sets on the command line: suites, names below a root, doctor and data check."""

import json

import pytest

from robustft.cli.app import run
from tests.layouts import imagenet_suite


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    imagenet_suite(folder, "coop")
    return folder


TINY = ["--model", "robustft-tiny", "--template", "photo", "--device", "cpu"]
ROWS = {
    "ImageNet": ("id", 1000),
    "ImageNet-V2": ("ood", 1000),
    "ImageNet-R": ("ood", 200),
    "ImageNet-A": ("ood", 200),
    "ImageNet-Sketch": ("ood", 1000),
    "ObjectNet": ("ood", 6),
}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_imagenet_suite_gives_six_rows_with_their_counts(root, tmp_path, capsys):
    results = tmp_path / "r.jsonl"
    command = ["eval", "--suite", "partial:imagenet", "--data-location", str(root), *TINY]
    assert run([*command, "--results-db", str(results)]) == 0
    found = {line["dataset"]: (line["role"], line["n"]) for line in lines(results)}
    assert found == ROWS
    assert {line["path"] for line in lines(results)} >= {f"partial:objectnet@{root}"}
    printed = capsys.readouterr().out
    for name, (role, count) in ROWS.items():
        assert f"{name}: {role}" in printed
        assert f", {count:,} images" in printed


def test_names_below_a_root_need_no_suite(root, tmp_path):
    results = tmp_path / "r.jsonl"
    names = ["--id", "partial:imagenet", "--ood", "mine=partial:objectnet,partial:imagenet-a"]
    command = ["eval", *names, "--data-location", str(root), *TINY]
    assert run([*command, "--results-db", str(results)]) == 0
    assert [line["dataset"] for line in lines(results)] == ["ImageNet", "mine", "ImageNet-A"]


@pytest.mark.parametrize("training", [True, False], ids=["with train/", "without"])
def test_a_set_is_in_distribution_to_itself_however_it_is_named(root, tmp_path, training):
    here = root
    if not training:  # as those have it who only evaluate
        here = tmp_path / "root"
        (here / "imagenet").mkdir(parents=True)
        for name in (path.name for path in root.iterdir() if path.name != "imagenet"):
            (here / name).symlink_to(root / name)
        for path in (root / "imagenet").rglob("val"):
            place = here / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    names = ["partial:imagenet", "partial:imagenet-a"]
    place = ["--data-location", str(here)]
    for number, sets in enumerate(
        (
            ["--eval-datasets", ",".join(names), *place],
            ["--eval-datasets", names[0], "--ood", names[1], *place],
            ["--id", names[0], "--ood", names[1], *place],
            ["--data", names[0], "--eval-datasets", ",".join(names), *place],
            ["--eval-datasets", ",".join(f"{name}@{here}" for name in names)],
        )
    ):
        results = tmp_path / f"{number}.jsonl"
        assert run(["eval", *sets, *TINY, "--results-db", str(results)]) == 0
        found = {line["dataset"]: line["role"] for line in lines(results)}
        assert found == {"ImageNet": "id", "ImageNet-A": "ood"}, sets
    alone = tmp_path / "alone.jsonl"
    named = ["--eval-datasets", names[0], *place]
    assert run(["eval", *named, *TINY, "--results-db", str(alone)]) == 0
    assert [line["role"] for line in lines(alone)] == ["id"]


def test_a_suite_says_all_that_is_missing(root, tmp_path, capsys):
    some = tmp_path / "some"
    some.mkdir()
    (some / "imagenet-rendition").symlink_to(root / "imagenet-rendition")
    assert run(["eval", "--suite", "imagenet", "--data-location", str(some), *TINY]) == 2
    error = capsys.readouterr().err
    for name in ("imagenet", "imagenet-v2", "imagenet-a", "imagenet-sketch", "objectnet"):
        assert f" {name}" in error
    assert f"--suite: not found below {some}: imagenet, imagenet-v2, imagenet-a" in error
    assert "; imagenet-r can be named by" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--suite", "imagenet"], "--suite: got 'imagenet', expected --data-location ROOT"),
        (["eval", "--ood", "imagenet-v2"], "expected imagenet-v2@ROOT"),
        (["eval", "--suite", "imagenets", "--data-location", "."], "expected one of imagenet,"),
        (["train", "--data", "imagenet"], "--data-location: got 'digits', expected the folder"),
        (["train", "--data", "imagnet", "--data-location", "."], "--data: got 'imagnet'"),
        (["data"], "data: got 'nothing', expected ls or check"),
        (["data", "check", "imagnet", "--data-location", "."], "data check: got 'imagnet'"),
        (["doctor", "--data-module", "x.yaml"], "without --data-location"),
        (["doctor", "--data"], "doctor: No such option '--data'; did you mean --data-"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_run_trains_on_a_registered_set_and_its_verbs_know_the_root(root, tmp_path, capsys):
    command = ["train", "--method", "linear-probe", "--epochs", "1", "--batch-size", "250", *TINY]
    data = ["--data", "partial:imagenet", "--data-location", str(root), "--aug", "none"]
    sets = ["--ood", "partial:imagenet-a", "--zero-shot", "inks"]
    assert run([*command, *data, *sets, "--logs", str(tmp_path / "logs")]) == 0
    folder = tmp_path / "logs" / "linear-probe-imagenet-0"
    again = [*command, *data, *sets, "--logs", str(tmp_path / "logs"), "--resume", "latest"]
    capsys.readouterr()
    assert run(again) == 0
    assert "finished and evaluated before" in capsys.readouterr().out
    evaluated = {line["dataset"] for line in lines(folder / "results.jsonl")}
    assert evaluated == {"ImageNet", "ImageNet-A", "Inks"}
    assert run(["eval", "--run", str(folder), "--ood", "partial:objectnet"]) == 0
    last = lines(folder / "results.jsonl")[-1]
    assert (last["dataset"], last["n"], last["method"]) == ("ObjectNet", 6, "linear-probe")
    vrf = ["vrf", "--run", str(folder), "--a", "1.5", "--b", "0.6", "--suite", "partial:imagenet"]
    assert run(vrf) == 0
    of_vrf = {
        x["dataset"]: x["n"] for x in lines(folder / "results.jsonl") if x.get("method") == "vrf"
    }
    assert of_vrf == {name: count for name, (_, count) in ROWS.items()}


def test_doctor_and_check_say_what_is_there_and_what_is_expected(root, capsys):
    assert run(["doctor", "--data-location", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "imagenet train: 2,000 images, 1,000 classes in" in printed
    assert "got 2,000 images, expected 1,281,167" in printed
    assert run(["data", "check", "imagenet-a", "--data-location", str(root)]) == 2
    assert "got 200 images, expected 7,500" in capsys.readouterr().out
    assert run(["data", "check", "partial:imagenet-a", "--data-location", str(root)]) == 0
    assert run(["data", "ls", "--data-location", str(root)]) == 0
    assert f"test: {root}/imagenet-adversarial/imagenet-a" in capsys.readouterr().out

"""`robustft compare --protocol`: every data set with every number of shots, and the tables."""

import json

import numpy as np
import pytest
import yaml

from robustft import protocols
from robustft.cli.app import run
from robustft.data.registry.known import REGISTRY
from robustft.data.registry.suites import suite
from robustft.errors import InputError
from tests.layouts import cifar, coop

CLASSES = ("ant", "bee", "cat", "dog", "eel")
TINY = ["--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu", "--aug", "none"]
BUDGET = [
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--warmup",
    "0",
    "--lr-grid",
    "1e-3",
    "--seeds",
    "2",
]
SETS = "partial:dtd,partial:eurosat"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coop")
    for name in ("dtd", "eurosat"):
        coop(folder, name, classes=CLASSES, each=3)
    return folder


def command(root, out, protocol, *more):
    given = ["compare", "--protocol", protocol, "--data-location", str(root), "--data", SETS]
    methods = [] if "--methods" in more else ["--methods", "ft,flyp", "--ensembles", "ft.wise-ft"]
    return [*given, *TINY, *BUDGET, *methods, "--out", str(out), *more]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(text, heading):
    """{method: numbers of its cells} of a section."""
    section = text.split(f"## {heading}\n")[1].split("##")[0]
    rows = [[c.strip(" *") for c in x.split("|")[1:-1]] for x in section.splitlines() if "|" in x]
    return rows[0][1:], {row[0]: [float(c.split(" ")[0]) for c in row[1:]] for row in rows[2:]}


def top1(folder, method, role):
    """By seed, of a comparison's selected lines."""
    found = {}
    for r in lines(folder / "results.jsonl"):
        if r["method"] == method and r["role"] == role and r["selected"]:
            found[r["seed"]] = 100 * r[f"{r['dataset']}:top1"]
    return found


@pytest.fixture(scope="module")
def few(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("few")
    own = out / "mine.yaml"
    own.write_text(
        "title: Few\nsource: ours\ndata: [food101]\nshots: [1, 2, 4]\nsettings: {epochs: 9}\n"
    )
    assert run(command(root, out / "out", str(own))) == 0
    return out / "out"


def test_few_shot_has_every_data_set_and_number_of_shots(few):
    folders = {path.name for path in few.iterdir() if path.is_dir()}
    assert folders == {f"{name}-{k}" for name in ("dtd", "eurosat") for k in (1, 2, 4)}
    for folder in folders:
        config = yaml.safe_load((few / folder / "config.yaml").read_text())
        assert config["shots"] == int(folder[-1])
        assert config["epochs"] == 1, "the flag wins over the protocol"
        drawn = json.loads((few / folder / "runs" / "ft-0.001-1" / "shots.json").read_text())
        assert len(drawn["train"]) == 5 * int(folder[-1])
        assert len(drawn["val"]) == 5 * min(int(folder[-1]), 3)
        roles = {r["role"] for r in lines(few / folder / "results.jsonl")}
        assert roles == {"id", "validation"}


def test_few_shots_tables_are_means_over_seeds_and_sets(few):
    text = (few / "protocol.md").read_text()
    assert text.startswith("# Few\n")
    heads, mean = table(text, "Mean of 2 data sets")
    assert heads == ["1 shot", "2 shots", "4 shots"]
    assert list(mean) == ["Zero-shot", "FT", "FLYP", "WiSE-FT"]
    for place, k in enumerate((1, 2, 4)):
        for method, row in (("ft", "FT"), ("zero-shot", "Zero-shot"), ("wise-ft", "WiSE-FT")):
            each = [top1(few / f"{name}-{k}", method, "id") for name in ("dtd", "eurosat")]
            assert set(each[0]) == {0, 1}
            for data, values in zip(("DTD", "EuroSAT"), each, strict=True):
                own = table(text, data)[1][row][place]
                assert own == pytest.approx(np.mean(list(values.values())), abs=0.051)
            expected = np.mean([list(values.values()) for values in each])
            assert mean[row][place] == pytest.approx(expected, abs=0.051)


def test_what_was_measured_is_not_measured_again(few, root, capsys):
    before = (few / "protocol.md").read_text()
    assert run(command(root, few, str(few.parent / "mine.yaml"))) == 0
    said = capsys.readouterr().out
    assert said.count("kept from before") == 6 * 2 * 4
    assert (few / "protocol.md").read_text() == before
    assert (
        "dtd: 5 classes, 15 test images; train + val at 1, 2, 4 shots: 5 + 5, 10 + 10, 20 + 15"
        in said
    )


def test_base_to_novel_has_both_halves_and_their_harmonic_mean(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(command(root, out, "base-to-novel", "--methods", "flyp")) == 0
    said = capsys.readouterr().out
    counts = "base 3 classes, 9 test images; novel 2 classes, 6 test images"
    assert f"dtd: {counts}; train + val at 16 shots: 18 + 9\n" in said
    text = (out / "protocol.md").read_text()
    heads, mean = table(text, "Mean of 2 data sets")
    assert heads == ["Base", "Novel", "H"]
    base, novel = (
        np.mean([list(top1(out / f"{n}-16", "flyp", role).values()) for n in ("dtd", "eurosat")])
        for role in ("id", "forgetting")
    )
    assert mean["FLYP"] == pytest.approx([base, novel, 2 * base * novel / (base + novel)], abs=0.06)
    records = [r for r in lines(out / "dtd-16" / "results.jsonl") if r["role"] != "geometry"]
    assert {r["dataset"] for r in records} == {"DTD (base)", "DTD (novel)"}


def test_a_protocol_with_a_suite_has_the_mean_of_its_shifts(tmp_path):
    cifar(tmp_path)
    own = tmp_path / "mine.yaml"
    own.write_text(
        "{title: Few, source: ours, data: [cifar10], shots: [1, 2], suite: 'partial:cifar10', "
        "settings: {}}"
    )
    more = ["--data", "partial:cifar10", "--methods", "ft", "--ensembles", "none"]
    given = command(tmp_path, tmp_path / "out", str(own), *more)
    given = [word for at, word in enumerate(given) if SETS not in given[at : at + 2]]
    assert run(given) == 0
    text = (tmp_path / "out" / "protocol.md").read_text()
    for place, k in enumerate((1, 2)):
        records = lines(tmp_path / "out" / f"cifar10-{k}" / "results.jsonl")
        tuned = [r for r in records if r["method"] == "ft" and r["role"] == "ood"]
        assert {r["dataset"] for r in tuned} == {"CIFAR-10.1", "CIFAR-10.2", "STL-10"}
        mean = 100 * np.mean([r[f"{r['dataset']}:top1"] for r in tuned])
        shown = table(text, "CIFAR-10, OOD mean")[1]["FT"][place]
        assert shown == pytest.approx(mean, abs=0.051)
        own_set = list(top1(tmp_path / "out" / f"cifar10-{k}", "ft", "id").values())
        assert table(text, "CIFAR-10")[1]["FT"][place] == pytest.approx(np.mean(own_set), abs=0.051)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--protocol", "few-shots"], "--protocol: got 'few-shots', expected few-shot, or a YAML"),
        (["--data", "dtdd"], "--data: got 'dtdd', expected some of "),
        (["--data", "base:dtd"], "--data: got 'base:dtd', expected some of "),
        (["--data", "food101,dtd"], "food101 train: not found below "),
        (["--ood", "digits"], "--ood: got it beside --protocol, expected one of them"),
        (["--suite", "imagenet"], "--suite: got it beside --protocol"),
        (["--data-location", "nowhere"], "--data-location: got 'nowhere', expected the folder"),
        (["--methods", "fft"], "--methods: got 'fft'"),
    ],
)
def test_what_cannot_be_carried_out_is_one_line_before_work_starts(
    root, tmp_path, capsys, more, message
):
    given = command(root, tmp_path / "out", "few-shot", *more)
    for flag in ("--protocol", "--data", "--data-location"):  # the last one counts
        while given.count(flag) > 1:
            at = given.index(flag)
            del given[at : at + 2]
    assert run(given) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.splitlines()[-1].startswith("robustft: ")
    assert not (tmp_path / "out" / "dtd-1").exists()


def test_the_packages_protocols_name_registered_sets():
    ten = set(suite("zero-shot")["forgetting"])
    for name, shots, halves in (
        ("few-shot", [1, 2, 4, 8, 16], False),
        ("base-to-novel", [16], True),
    ):
        protocol = protocols.load(name)
        assert (protocol.shots, protocol.halves) == (shots, halves)
        assert set(protocol.data) == {"imagenet", *ten}
        assert set(protocol.data) <= set(REGISTRY)
        assert protocol.settings["seeds"] == 3
    shifted = protocols.load("few-shot-imagenet")
    assert (shifted.data, shifted.shots, shifted.suite) == (
        ["imagenet"],
        [1, 2, 4, 8, 16],
        "imagenet",
    )
    assert protocols.names() == ["base-to-novel", "few-shot", "few-shot-imagenet"]


@pytest.mark.parametrize(
    "text", ["title: x", "- a", "{title: x, source: y, data: [], shots: [1], settings: {}}",
             "{title: x, source: y, data: [dtd], shots: [0], settings: {}}", "{a: 1}", "[", ""]
)  # fmt: skip
def test_a_file_that_is_no_protocol_is_named(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml: not "):
        protocols.load(str(path))

"""`robustft compare`: one budget, a rate chosen on ID validation, and no work done twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from robustft.cli import mixtures
from robustft.cli.app import run
from robustft.cli.comparison import Experiment
from robustft.cli.runs import open_run
from robustft.methods.ft import FT

FIXED = ("--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu", "--aug", "none")
BUDGET = ("--epochs", "2", "--batch-size", "8", "--warmup", "0", "--lr-grid", "1e-5,1e-3")


def command(images, out, *more, methods="ft,r-adapter"):
    sets = ("--data-location", str(images), "--id", str(images))
    sets += ("--zero-shot", str(images.parent / "others"))
    built = ("--ensembles", "wise-ft,ft.vrf", "--alpha", "0,0.5,1")
    given = ["compare", "--out", str(out), *FIXED, *BUDGET, *sets, *built]
    for flag, value in zip(more[::2], more[1::2], strict=True):  # in place of what is there
        if flag in given and flag != "--option":
            at = given.index(flag)
            del given[at : at + 2]
        given += [flag, value]
    return [*given, "--methods", methods]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A comparison of two methods at two rates with two seeds, never interrupted."""
    out = tmp_path_factory.mktemp("compare") / "whole"
    assert run(command(images, out, "--seeds", "2", "--option", "r-adapter.rank=2")) == 0
    return out


def test_every_run_has_its_line_and_the_best_on_validation_is_evaluated(whole):
    records = lines(whole / "results.jsonl")
    tried = [r for r in records if r["role"] == "validation"]
    assert len(tried) == 2 * 2 * 2
    assert {(r["split"], r["n"]) for r in tried} == {("val", 6)}
    assert {r["split"] for r in records if r["role"] not in ("validation", "ratio")} == {"test"}
    for method in ("ft", "r-adapter"):
        for seed in (0, 1):
            mine = [r for r in tried if (r["method"], r["seed"]) == (method, seed)]
            assert [r["lr"] for r in mine] == [1e-5, 1e-3]
            key = f"{mine[0]['dataset']}:top1"
            best = max(mine, key=lambda r: r[key])
            assert [r["selected"] for r in mine] == [r is best for r in mine]
            own = [r for r in records if r["role"] == "id" and r["method"] == method
                   and r["seed"] == seed]  # fmt: skip
            assert [r["lr"] for r in own] == [best["lr"]]
    curve = [r for r in records if r["method"] == "wise-ft" and r["role"] == "id"]
    assert [(r["base"], r["seed"], r["alpha"]) for r in curve] == [
        (base, seed, alpha)
        for seed in (0, 1)
        for base in ("ft", "r-adapter")
        for alpha in (0.0, 0.5, 1.0)
    ]
    assert {r["base"] for r in records if r["method"] == "vrf"} == {"ft"}
    assert {r["method"] for r in records if r["role"] == "geometry"} == {
        *("zero-shot", "ft", "r-adapter", "wise-ft")
    }


def test_the_report_has_all_rows_with_their_deviation(whole):
    rows = [line.split("|")[1:-1] for line in (whole / "table.md").read_text().splitlines()][2:]
    names = [row[0].strip() for row in rows]
    assert names == ["Zero-shot", "FT", "R-Adapter", "WiSE-FT", "VRF", "R-Adapter+WiSE-FT"]
    assert all("±" in row[1] for row in rows)
    assert (whole / "report.html").stat().st_size > 1000


def test_runs_are_run_folders_and_the_chosen_ones_keep_their_weights(whole, capsys):
    for r in lines(whole / "results.jsonl"):
        if r["role"] == "validation":
            folder = whole / "runs" / f"{r['method']}-{r['lr']!r}-{r['seed']}"
            assert (folder / "model.safetensors").is_file() == r["selected"]
            assert not (folder / "checkpoints").exists()
            if r["selected"] and r["method"] == "r-adapter":
                assert (folder / "adapters").is_dir()
                opened = open_run(folder, "cpu")
    assert opened.options.option == ["rank=2"]
    assert opened.options.method == "r-adapter"
    capsys.readouterr()
    assert run(["report", "--results-db", str(whole), "--out", str(whole / "again")]) == 0
    shutil.rmtree(whole / "again")


def test_a_second_start_does_nothing_again(whole, images, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("worked again")

    for name in ("_measure", "_train"):
        monkeypatch.setattr(Experiment, name, never)
    before = (whole / "results.jsonl").read_bytes()
    monkeypatch.chdir(whole.parent)  # the paths are absolute
    assert run(["compare", "--config", str(whole / "config.yaml")]) == 0
    assert (whole / "results.jsonl").read_bytes() == before
    assert capsys.readouterr().out.count("kept from before") == 2 * 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "3"], "--epochs: got 3, expected 2, with which "),
        (["--lr-grid", "1e-3"], "--lr-grid: got 0.001, expected 1e-05, 0.001, with which "),
        (["--option", "ft.label_smoothing=0.1"], "--option: got "),
        (["--ood", "digits"], "--ood: got digits, expected none, with which "),
        (["--alpha", "1"], "--alpha: got "),
    ],
)
def test_a_changed_option_is_one_line_that_names_it(whole, images, more, message, capsys):
    before = (whole / "config.yaml").read_text()
    assert run(command(images, whole, "--option", "r-adapter.rank=2", *more)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert "a changed comparison needs another --out" in said
    assert (whole / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "fft"], "--methods: got 'fft', expected all or some of linear-probe, "),
        (["--methods", "zero-shot"], "--methods: got none, expected"),
        (["--seeds", "0"], "--seeds: got 0, expected at least 1"),
        (["--lr-grid", "0"], "--lr-grid: got 0.0, expected a finite number, above 0"),
        (["--lr-grid", "1", "--lr-factors", "2"], "--lr-factors: got it beside --lr-grid"),
        (["--alpha", "1.5"], "--alpha: got 1.5, expected a finite number"),
        (["--option", "rang.k=1"], "--option: got 'rang.k=1', expected METHOD.KEY=VALUE of one of"),
        (["--option", "ft.rank=1"], "method ft has no setting 'rank'"),
        (
            ["--ensembles", "vrff"],
            "--ensembles: got 'vrff', expected all, none, or some of wise-ft",
        ),
        (
            ["--ensembles", "dive.vrf"],
            "--ensembles: got 'dive.vrf', expected a method that is comp",
        ),
        (["--ensembles", "none,vrf"], "--ensembles: got none beside others"),
        (["--methods", "dive"], "--reference: got nothing, expected reference pairs for dive"),
        (["--lr", "1e-3"], "No such option"),
        (["--resume", "latest"], "No such option"),
    ],
)
def test_what_cannot_be_compared_is_one_line_before_work_starts(tmp_path, capsys, more, message):
    base = ["compare", "--out", str(tmp_path / "out"), *FIXED, "--data-location", "digits"]
    methods = [] if "--methods" in more else ["--methods", "ft"]
    assert run([*base, *methods, *more]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_torchrun_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for verb in (["compare", "--methods", "ft"], ["demo"]):
        monkeypatch.setenv("RANK", "0")
        assert run([*verb, "--out", str(tmp_path / "out")]) == 2
        assert "compare: got 2 processes, expected one" in capsys.readouterr().err
        monkeypatch.setenv("RANK", "1")
        assert run([*verb, "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_comparison_goes_on_within_its_run(
    whole, images, tmp_path, monkeypatch, capsys, number
):
    """With the results of one that was never stopped, and no step of a finished run again."""
    loss, steps = FT.loss, []

    def counted(self, module, batch):
        steps.append(1)
        if len(steps) == stop_at:
            os.kill(os.getpid(), number)
        return loss(self, module, batch)

    monkeypatch.setattr(FT, "loss", counted)
    given = command(images, tmp_path / "out", "--seeds", "2", "--option", "r-adapter.rank=2")
    stop_at = 15  # in the second of FT's two runs of twelve steps
    assert run(given) == 128 + number
    said = capsys.readouterr().err
    assert "stopped with 1 of 12 parts measured, and a run at step 3 saved, kept in " in said
    assert "the same command continues" in said
    assert not (tmp_path / "out" / "results.jsonl").exists()
    stop_at = 0
    assert run(given) == 0
    assert len(steps) == 4 * 12
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == (
        whole / "results.jsonl"
    ).read_bytes()


def test_a_killed_comparison_goes_on(whole, images, tmp_path):
    """kill -9 after the first run: nothing is lost of what was finished."""
    out = tmp_path / "out"
    given = command(images, out, "--seeds", "2", "--option", "r-adapter.rank=2")
    given += ["--save-steps", "1"]
    threads = str(torch.get_num_threads())  # bits hang on it
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), OMP_NUM_THREADS=threads
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "robustft", *given], env=environment, stdout=subprocess.DEVNULL
    )
    finished, end = out / "runs" / "ft-1e-05-0" / "outcome.json", time.monotonic() + 240
    while not finished.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.wait()
    written = finished.stat().st_mtime_ns
    assert run(given) == 0
    assert finished.stat().st_mtime_ns == written
    assert (out / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    assert not [path for path in out.rglob(".*")]


def test_methods_seeds_and_ensembles_may_be_added(whole, images, tmp_path, monkeypatch, capsys):
    """Soups need the models of every rate: those that were dropped are trained again."""
    out = tmp_path / "out"
    given = ("--option", "r-adapter.rank=2", "--ensembles")
    assert run(command(images, out, *given, "none")) == 0
    capsys.readouterr()
    more = (*given, "ft.greedy-soup,l2-sp.lse", "--seeds", "2")
    assert run(command(images, out, *more, methods="ft,r-adapter,l2-sp")) == 0
    said = capsys.readouterr().out
    assert said.count("kept from before") == 3
    found = {(r["method"], r["base"]) for r in lines(out / "results.jsonl") if r["role"] == "id"}
    assert {("l2-sp", None), ("greedy-soup", "ft"), ("lse", "l2-sp")} <= found
    kept = [r for r in lines(whole / "results.jsonl") if r.get("method") in ("ft", "r-adapter")]
    again = [r for r in lines(out / "results.jsonl") if r.get("method") in ("ft", "r-adapter")]
    assert again == kept


def test_changed_data_are_told(images, tmp_path, capsys):
    shutil.copytree(images.parent, tmp_path / "data")
    copy = tmp_path / "data" / images.name
    given = (copy, tmp_path / "out", "--ensembles", "none")
    assert run(command(*given, methods="ft")) == 0
    (copy / "train" / "one" / "0.png").unlink()
    capsys.readouterr()
    assert run(command(*given, methods="ft,l2-sp")) == 2
    said = capsys.readouterr().err
    assert "(train).labels: " in said
    assert said.count("\n") == 1


@pytest.fixture
def contrary(tmp_path):
    """Data whose validation labels are wrong: what learns is right on the test set and wrong on
    validation, so that a choice by either is the contrary of a choice by the other."""
    root = tmp_path / "contrary"
    rng = np.random.default_rng(1)
    names = ("one", "seven", "zero")
    for split, count, turn in (("train", 16, 0), ("val", 8, 1), ("test", 8, 0)):
        for index, name in enumerate(names):
            folder = root / split / names[(index + turn) % 3]
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 60, (24, 24, 3))
                pixels[:, index * 8 : index * 8 + 8] += 180
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}-{number}.png")
    return root


def test_whatever_is_chosen_is_chosen_on_validation_and_never_on_tests(contrary, tmp_path):
    more = ("--zero-shot", "letters", "--epochs", "4", "--ensembles")
    given = (contrary, tmp_path / "out", *more, "none", "--lr-grid", "1e-7,3e-3")
    assert run([*command(*given, methods="ft"), "--keep-models"]) == 0
    records = lines(tmp_path / "out" / "results.jsonl")
    tried = {r["lr"]: r for r in records if r["role"] == "validation"}
    assert tried[1e-7]["contrary:top1"] > tried[3e-3]["contrary:top1"]
    assert tried[1e-7]["selected"]
    own = next(r for r in records if r["role"] == "id" and r["method"] == "ft")
    best = run_accuracy(tmp_path / "out" / "runs" / "ft-0.003-0", contrary, tmp_path)
    assert best > own["contrary:top1"] + 0.3  # what a choice on the test set would have taken
    # With the better rate alone: validation prefers the zero-shot model, the test set does not.
    given = (contrary, tmp_path / "more", *more, "ose,wise-ft", "--lr-grid", "3e-3")
    assert run(command(*given, "--alpha", "0,1", methods="ft")) == 0
    records = lines(tmp_path / "more" / "results.jsonl")
    for method in ("ose", "wise-ft"):
        curve = {r["alpha"]: r for r in records if r["role"] == "id" and r["method"] == method}
        assert curve[1.0]["contrary:top1"] > curve[0.0]["contrary:top1"] + 0.3
        assert [curve[alpha]["selected"] for alpha in (0.0, 1.0)] == [True, False]


def run_accuracy(folder, data, tmp_path):
    results = tmp_path / "one.jsonl"
    given = ["--eval-datasets", str(data), "--results-db", str(results)]
    assert run(["eval", "--run", str(folder), *given]) == 0
    return lines(results)[0][f"{data.name}:top1"]


def test_a_rate_that_diverges_is_left_out(images, tmp_path, capsys):
    """And a method that diverges at all of them; the others are compared."""
    more = ("--lr-grid", "1e-3,1e30", "--ensembles", "ft.ose,l2-sp.ose")
    more += ("--option", "l2-sp.alpha=1e39")
    given = command(images, tmp_path / "out", *more, methods="ft,l2-sp")
    for _ in range(2):  # no run that diverged is trained again
        assert run(given) == 0
    said = capsys.readouterr()
    assert said.out.count("1e+30: diverged") == 2
    assert "l2-sp: training diverged at every rate, so it is left out (seed 0)" in said.err
    records = lines(tmp_path / "out" / "results.jsonl")
    tried = [r for r in records if r["role"] == "validation"]
    assert [(r["method"], r["lr"], r["selected"]) for r in tried] == [
        *(("ft", 1e-3, True), ("ft", 1e30, False), ("l2-sp", 1e-3, False), ("l2-sp", 1e30, False))
    ]
    measured = {(r["method"], r["base"]) for r in records if r["role"] == "id"}
    assert measured == {("zero-shot", None), ("ft", None), ("ose", "ft")}


def test_ensembles_are_those_that_a_method_names():
    both = ("ft", "linear-probe")
    assert mixtures.chosen([], both) == dict.fromkeys(both, ("wise-ft", "ose", "vrf"))
    assert mixtures.chosen(["none"], both) == dict.fromkeys(both, ())
    assert mixtures.chosen(["all"], ("ft",)) == {"ft": mixtures.NAMES}
    assert mixtures.chosen(["lse", "ft.vrf"], both) == {
        "ft": ("lse", "vrf"),
        "linear-probe": ("lse",),
    }

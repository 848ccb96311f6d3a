"""The demo end to end, with a budget too small to learn much but with every method and file."""

import json

import pytest

from robustft.cli import compare
from robustft.cli.app import run
from robustft.methods import METHODS

ROWS = ("Zero-shot", "LP", "FT", "LP-FT", "FLYP", "DiVE", "R-Adapter", "WiSE-FT", "OSE", "VRF")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert run(["demo", "--out", str(out), "--epochs", "1", "--lr", "1e-3", "--lr", "3e-3"]) == 0
    return out


def rows(folder):
    lines = (folder / "table.md").read_text().splitlines()
    return [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]


def test_the_table_has_every_method(demo):
    assert rows(demo) == [*ROWS, "DiVE+VRF"]
    head = (demo / "table.md").read_text().splitlines()[0]
    assert all(column in head for column in ("(ID)", "OOD mean", "Letters", "Inks", "RSA"))


def test_every_result_is_recorded(demo):
    records = [json.loads(line) for line in (demo / "results.jsonl").read_text().splitlines()]
    scores = [r for r in records if r["role"] in ("id", "ood", "forgetting")]
    assert len({r["dataset"] for r in scores if r["role"] == "ood"}) == 10
    assert {r["split"] for r in scores} == {"test"}
    assert sum(r["role"] == "validation" for r in records) == 6 * 2
    chosen = [r["alpha"] for r in scores if r["method"] == "ose" and r["selected"]]
    assert len(set(chosen)) == 1
    zero_shot = {r["dataset"]: r for r in scores if r["method"] == "zero-shot"}
    ends = [r for r in scores if r["method"] in ("wise-ft", "ose") and r["alpha"] == 0]
    for r in ends:  # α = 0 is the zero-shot model
        key = f"{r['dataset']}:top1"
        assert r[key] == pytest.approx(zero_shot[r["dataset"]][key], abs=0.01)
    for r in records:
        if r["role"] == "geometry" and r["method"] in ("zero-shot", "linear-probe"):
            assert r["RSA:euclidean"] == pytest.approx(1.0)


def test_the_report_is_written(demo):
    for name in ("report.html", "id-ood.png", "alpha.svg", "ratio.png", "geometry.png"):
        assert (demo / name).stat().st_size > 1000, name


def test_the_demo_is_a_comparison_on_built_in_data(monkeypatch, tmp_path):
    """--methods all adds what is made of FT's models; a method named alone has no ensemble but
    its own."""
    asked = []
    monkeypatch.setattr("robustft.cli.demo.carry_out", lambda options, **_: asked.append(options))
    assert run(["demo", "--out", str(tmp_path), "--seeds", "3", "--methods", "all"]) == 0
    assert run(["demo", "--methods", "l2-sp,dive", "--lr-grid", "1e-2", "--batch-size", "128"]) == 0
    assert run(["demo", "--methods", "l2-sp"]) == 0
    everything, some, one = asked
    assert isinstance(everything, compare.CompareOptions)
    assert (everything.out, everything.seeds, everything.warmup) == (tmp_path, 3, 16)
    assert everything.lr_grid == [0.001, 0.003, 0.01, 0.03, 0.1]
    assert everything.option == ["flyp-snd.lambda_=10.0", "r-adapter.ema=0.95", "dive.lambda_=10.0"]
    made = {"greedy-soup", "uniform-soup", "post-tpgm", "lse", "calibrated-ose"}
    assert made <= {name.removeprefix("ft.") for name in everything.ensembles}
    assert (some.methods, some.ensembles) == (["l2-sp", "dive"], ["dive.vrf"])
    assert (some.lr_grid, some.warmup) == ([0.01], 8)
    assert one.ensembles == ["none"]


def test_a_method_that_is_unknown_is_one_line(tmp_path, capsys):
    assert run(["demo", "--out", str(tmp_path / "out"), "--methods", "ft,fine"]) == 2
    said = capsys.readouterr().err
    assert "--methods: got 'fine', expected all or some of linear-probe, " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_demo_of_all_methods_has_every_method_and_mixture_under_headings(tmp_path):
    rates = ["--lr", "1e-3", "--lr", "3e-3"]
    assert run(["demo", "--out", str(tmp_path), "--methods", "all", "--epochs", "1", *rates]) == 0
    found = rows(tmp_path)
    made = ("Greedy soup", "Uniform soup", "TPGM (after)", "LSE", "OSE (calibrated)")
    for name in (*(method.display for method in METHODS.values()), *made, "*Ensembles*"):
        assert found.count(name) == 1, name

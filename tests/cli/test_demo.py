"""The demo end to end, with a budget too small to learn much but with every method and file."""

import functools
import json

import pytest

from robustft import demo as demo_module
from robustft.cli.app import run
from robustft.methods import METHODS
from robustft.models import load_clip

ROWS = ("Zero-shot", "LP", "FT", "LP-FT", "FLYP", "DiVE", "R-Adapter", "WiSE-FT", "OSE", "VRF")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert run(["demo", "--out", str(out), "--epochs", "1", "--lr", "1e-3", "--lr", "3e-3"]) == 0
    return out


def test_the_table_has_every_method(demo):
    lines = (demo / "table.md").read_text().splitlines()
    found = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    assert found == [*ROWS, "DiVE+VRF"]
    assert all(column in lines[0] for column in ("(ID)", "OOD mean", "Letters", "Inks", "RSA"))


def test_every_result_is_recorded(demo):
    records = [json.loads(line) for line in (demo / "results.jsonl").read_text().splitlines()]
    scores = [r for r in records if r["role"] in ("id", "ood", "forgetting")]
    assert len({r["dataset"] for r in scores if r["role"] == "ood"}) >= 6
    assert {r["split"] for r in scores} == {"test"}
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


@pytest.fixture
def quick(monkeypatch):
    """Two shifts instead of ten, and few iterations of TPGM."""
    shifts, tpgm = demo_module.digit_shifts, demo_module.tpgm
    monkeypatch.setattr(demo_module, "digit_shifts", lambda seed: dict([*shifts(seed).items()][:2]))
    monkeypatch.setattr(demo_module, "tpgm", functools.partial(tpgm, iterations=2))


def test_a_demo_of_named_methods_shows_these_and_what_is_built_on_them(tmp_path, capsys, quick):
    asked = ["--methods", "l2-sp,ft", "--epochs", "1", "--lr", "1e-3"]
    assert run(["demo", "--out", str(tmp_path), *asked]) == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    found = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    assert found == ["Zero-shot", "FT", "L2-SP", "WiSE-FT", "OSE", "VRF"]
    capsys.readouterr()
    assert run(["demo", "--out", str(tmp_path), "--methods", "ft,fine"]) == 2
    assert (
        "--methods: got 'fine', expected all or some of linear-probe, " in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_demo_of_all_methods_has_every_method_and_mixture_under_headings(tmp_path):
    rates = ["--lr", "1e-3", "--lr", "3e-3"]
    assert run(["demo", "--out", str(tmp_path), "--methods", "all", "--epochs", "1", *rates]) == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    found = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    made = ("Greedy soup", "Uniform soup", "TPGM (after)", "LSE", "OSE (calibrated)")
    for name in (*(method.display for method in METHODS.values()), *made, "*Ensembles*"):
        assert found.count(name) == 1, name


def test_mixtures_are_made_of_the_models_of_every_rate(tmp_path, quick):
    budget = demo_module.Budget(1, 64, (1e-3, 3e-3))
    kept = demo_module.Kept(tmp_path / "kept", budget, "glyphs")
    clip = load_clip("robustft-tiny", "glyphs")
    first = demo_module.Experiment(clip, 0, budget, kept)
    kept.keep(0, "ft", list(first.measure("ft")))
    found = list(first.measure("mixtures"))
    # Begun anew after "ft" was kept: the models of the rates are trained again.
    again = list(demo_module.Experiment(clip, 0, budget, kept).measure("mixtures"))
    assert found == again
    assert {r["method"] for r in found} == {
        "greedy-soup",
        "uniform-soup",
        "post-tpgm",
        "lse",
        "calibrated-ose",
    }
    assert {r["base"] for r in found} == {"ft"}
    assert demo_module.parts(("ft",), mixtures=True) == (
        "zero-shot",
        "ft",
        "ensembles-ft",
        "mixtures",
    )
    assert demo_module.parts(("flyp",), mixtures=True) == ("zero-shot", "flyp")

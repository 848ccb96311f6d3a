"""The demo end to end, with a budget too small to learn much but with every method and file."""

import json

import pytest

from robustft.cli.app import run

ROWS = ("Zero-shot", "LP", "FT", "LP-FT", "FLYP", "WiSE-FT", "OSE", "R-Adapter", "DiVE", "VRF")


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

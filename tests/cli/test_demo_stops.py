"""The demo keeps what it has measured when it is stopped, and goes on from there."""

import signal
import subprocess
import sys
import time

import pytest

from robustft import demo
from robustft.models import load_clip

BUDGET = demo.Budget(1, 64, (1e-3,))


def test_ctrl_c_keeps_the_parts_and_says_how_to_continue(tmp_path):
    out = tmp_path / "demo out"
    command = [sys.executable, "-m", "robustft", "demo", "--out", str(out), "--epochs", "1"]
    process = subprocess.Popen(
        [*command, "--lr", "1e-3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = out / "unfinished" / "seed-0-zero-shot.jsonl"
    end = time.monotonic() + 120
    while not first.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "of 8 parts measured" in said
    assert "the same command continues" in said
    assert not (out / "results.jsonl").exists()
    kept = demo.Kept(out / "unfinished", BUDGET, "glyphs")  # the same budget: nothing is dropped
    assert kept.count() >= 1
    assert {line["method"] for line in kept.records(0, "zero-shot")} == {"zero-shot"}


def test_what_is_kept_is_not_measured_again(tmp_path, monkeypatch, capsys):
    kept = demo.Kept(tmp_path / "unfinished", BUDGET, "glyphs")
    measured = []

    def measure(self, part):
        measured.append(part)
        if part == "flyp" and len(measured) < 6:
            raise KeyboardInterrupt
        yield {"method": part, "seed": self.seed}

    monkeypatch.setattr(demo.Experiment, "measure", measure)
    clip = load_clip("robustft-tiny", "glyphs")
    with pytest.raises(KeyboardInterrupt):
        list(demo.measure(clip, 0, BUDGET, kept))
    assert measured == ["zero-shot", "linear-probe", "ft", "lp-ft", "flyp"]
    again = demo.Kept(tmp_path / "unfinished", BUDGET, "glyphs")
    records = list(demo.measure(clip, 0, BUDGET, again))
    assert measured[5:] == ["flyp", "r-adapter", "dive", "ensembles"]
    assert [r["method"] for r in records] == list(demo.parts())
    assert capsys.readouterr().out.count("kept from before") == 4
    for other in (demo.Budget(2, 64, (1e-3,)), demo.Budget(1, 64, (1e-3, 1e-2))):
        assert demo.Kept(tmp_path / "unfinished", other, "glyphs").count() == 0
        demo.Kept(tmp_path / "unfinished", BUDGET, "glyphs").keep(0, "ft", records)

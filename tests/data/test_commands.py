"""What the command line says of data: how many pairs were drawn, what is damaged, in one line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from robustft.cli.app import run

MODEL = ["--model", "robustft-tiny", "--pretrained", "glyphs", "--template", "photo"]
SHORT = [*MODEL, "--epochs", "1", "--batch-size", "8", "--warmup", "0", "--device", "cpu"]


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for split, count in (("train", 8), ("val", 2), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                save(tmp_path / "pets" / split / name / f"photo {number}.png", (label, number))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pets"


def test_all_reference_pairs_are_used_and_counted(folder, capsys):
    rows = "".join(f"train/cat/photo {i % 8}.png,a cat number {i}\n" for i in range(40))
    (folder / "pairs.csv").write_text("path,caption\n" + rows)
    train = ["train", "--method", "dive", "--data-location", "pets", *SHORT]
    train += ["--reference", "pets/pairs.csv"]
    assert run([*train, "--name", "all"]) == 0
    assert "reference pairs: 40 of 40 from pairs\n" in capsys.readouterr().out
    assert run([*train, "--name", "some", "--reference-samples", "16"]) == 0
    assert "reference pairs: 16 of 40 from pairs\n" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["0", "2"])
def test_too_many_damaged_images_end_a_run_in_one_line(folder, workers, capfd):
    bad = folder / "train" / "cat" / "photo 3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    train = ["train", "--method", "ft", "--data-location", "pets", *SHORT, "--workers", workers]
    assert run(train) == 2
    error = capfd.readouterr().err.replace("\r", "\n")
    last = error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert "robustft: cannot read the image" in last
    assert "photo 3.png" in last
    assert "1 of 16 images cannot be read" in last


def test_a_damaged_image_among_many_does_not_end_a_run(folder, capfd):
    for number in range(110):
        save(folder / "test" / "cat" / f"more {number}.png", number)
    (folder / "test" / "cat" / "more 7.png").write_bytes(b"<html>404</html>")
    results = folder.parent / "results.jsonl"
    arguments = ["--eval-datasets", "pets", "--results-db", str(results), "--device", "cpu"]
    assert run(["eval", *MODEL, *arguments]) == 0
    error = capfd.readouterr().err
    assert "more 7.png" in error
    assert "robustft: pets: 1 of 116 images could not be read, so left out" in error
    assert '"n": 115' in results.read_text()

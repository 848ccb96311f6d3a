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

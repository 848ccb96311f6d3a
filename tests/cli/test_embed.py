"""`robustft embed` computes what `robustft train` then finds; `--clear` removes it."""

import pytest

from robustft.cli.app import run
from robustft.features import FeatureStore

TINY = ["--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu"]


def folders(root):
    return {(entry.kind, entry.rows, entry.folder.name) for entry in FeatureStore(root).entries()}


def test_a_run_opens_what_embed_computed(tmp_path, capsys, monkeypatch):
    store = tmp_path / "store"
    where = ["--feature-store", str(store)]
    pairs = ["--reference", "glyphs", "--reference-samples", "70"]
    assert run(["embed", *TINY, *where, *pairs, "--data-location", "digits"]) == 0
    before = folders(store)
    assert sorted((kind, rows) for kind, rows, _ in before) == [
        ("image", 70), ("image", 1079), ("text", 70), ("token", 70)
    ]  # fmt: skip
    assert "image Digits: 1079 rows, 0.3 MB" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    common = [*TINY, "--feature-store", "store", "--aug", "none", "--batch-size", "64"]
    common += ["--epochs", "1", "--id", "digits", "--template", "photo", "--logs", str(tmp_path)]
    for method, more in (("dive", pairs), ("linear-probe", [])):
        assert run(["train", *common, "--method", method, *more]) == 0
    said = capsys.readouterr().out
    assert f"their image and text and token rows: 42.6 kB in {store}\n" in said
    assert folders(store) == before


def test_clear_and_doctor(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ROBUSTFT_FEATURE_STORE", str(tmp_path))
    assert run(["embed", *TINY, "--reference", "glyphs", "--reference-samples", "9"]) == 0
    assert run(["doctor"]) == 0
    assert f"feature store: {tmp_path}, 0.0 MB (robustft embed" in capsys.readouterr().out
    assert run(["embed", "--clear", "--unused-days", "1"]) == 0
    assert len(folders(tmp_path)) == 3
    assert run(["embed", "--clear"]) == 0
    assert folders(tmp_path) == set()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{tmp_path}: 0.0 kB removed"
    assert float(said[1].split()[1]) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--feature-store", "off"], "--feature-store: got off, expected a folder"),
        ([], "embed: got no data, expected --reference, --data-location or both"),
    ],
)
def test_refusals(arguments, message, capsys):
    assert run(["embed", *TINY, *arguments]) == 2
    assert message in capsys.readouterr().err

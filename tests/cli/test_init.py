"""robustft init writes what robustft train runs, for every layout that docs/your-images.md and
docs/data.md have."""

import json
import shutil

import pytest
import yaml

from robustft.cli.app import run
from robustft.cli.options import offered, resolve
from robustft.cli.train_options import TrainOptions

TINY = ["--model", "robustft-tiny", "--device", "cpu"]


def _table(images, split, path, names):
    """Write the rows of a split as path,label lines."""
    rows = [
        f"{file.absolute()},{names.index(file.parent.name)}"
        for file in sorted((images / split).rglob("*.png"))
    ]
    path.write_text("path,label\n" + "\n".join(rows) + "\n")


def _folder(images, here):
    shutil.copytree(images, here / "data")
    return [], {"id": ["data"]}


def _with_validation(images, here):
    shutil.copytree(images, here / "data")
    shutil.copytree(images / "test", here / "data" / "val")
    (here / "data" / "classnames.txt").write_text("one\nseven\nnil\n")
    return [], {"id": ["data"]}


def _without_test(images, here):
    shutil.copytree(images / "train", here / "data" / "train")
    return [], {"zero_shot": ["inks"]}


def _beside(images, here):
    """A shifted set beside the data, one of other classes, and one whose role is in doubt."""
    shutil.copytree(images, here / "data")
    shutil.copytree(images / "test", here / "shifted" / "test")
    shutil.copytree(images.parent / "others", here / "others")
    shutil.copytree(images / "test" / "one", here / "mixed" / "test" / "one")
    shutil.copytree(images / "test" / "one", here / "mixed" / "test" / "cat")
    (here / "notes.csv").write_text("a,b\n1,2\n")
    return [], {"id": ["data"], "ood": ["shifted"], "zero_shot": ["others"]}


def _tables(images, here):
    (here / "data").mkdir()
    names = ["one", "seven", "zero"]
    (here / "data" / "classnames.txt").write_text("\n".join(names))
    _table(images, "train", here / "data" / "signs-train.csv", names)
    _table(images, "test", here / "data" / "signs-test.csv", names)
    return [], {"data_location": "data/signs-train.csv", "id": ["data/signs-test.csv"]}


def _own_name(images, here):
    shutil.copytree(images, here / "my: pictures #1")
    return ["--data-location", "my: pictures #1"], {"id": ["my: pictures #1"]}


def _registered(images, here):
    shutil.copytree(images, here / "root" / "signs")
    (here / "mine.yaml").write_text(
        "signs:\n  title: Signs\n  reader: class-folders\n  templates: ['a {}.']\n"
        "  train: {at: [signs/train]}\n  test: {at: [signs/test]}\n"
    )
    more = ["--data-module", "mine.yaml", "--data-location", "root"]
    return more, {"data": "signs", "data_location": "root", "id": ["signs"]}


LAYOUTS = [_folder, _with_validation, _without_test, _beside, _tables, _own_name, _registered]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__.strip("_"))
def test_what_is_written_is_trained_unchanged(layout, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more, expected = layout(images, tmp_path)
    assert run(["init", *TINY, *more]) == 0
    said = capsys.readouterr().out
    assert "48 images to train" in said or "42 images to train" in said
    assert "robustft train --config run.yaml" in said
    written = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert {key: written.get(key) for key in ("id", "ood", "zero_shot")} == {
        **dict.fromkeys(("id", "ood", "zero_shot")),
        **{key: value for key, value in expected.items() if key in ("id", "ood", "zero_shot")},
    }
    assert expected.items() <= written.items()
    assert run(["train", "--config", "run.yaml", "--epochs", "1"]) == 0
    (results,) = (tmp_path / "logs").glob("*/results.jsonl")
    roles = {json.loads(line)["role"] for line in results.read_text().splitlines()}
    assert ("id" in roles) == ("id" in expected)
    assert ("ood" in roles) == ("ood" in expected)


def test_every_setting_stands_there_under_its_help_and_at_its_default(
    images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(images.parent)
    out = tmp_path / "run.yaml"
    assert run(["init", *TINY, "--data-location", "images", "--out", str(out)]) == 0
    text = out.read_text()
    shown = resolve(TrainOptions, out, {})
    lines = text.splitlines()
    every = yaml.safe_load(
        "\n".join(
            line.removeprefix("# ") for line in lines if line.partition(":")[0][2:] in _keys()
        )
        + "\n"
        + "\n".join(line for line in lines if not line.startswith("#"))
    )
    assert set(every) == _keys()
    assert every["seed"] == TrainOptions().seed
    assert every["select"] == "last"
    assert every["lr"] == 1e-5  # FLYP's own, which resolve leaves to the method
    assert shown.batch_size == every["batch_size"]
    words = " ".join(line.removeprefix("#").strip() for line in lines)
    for field in offered(TrainOptions):
        assert " ".join(field.metadata["help"].split()) in words


def _keys():
    return {field.name for field in offered(TrainOptions)}


def test_a_file_is_not_written_over_unasked(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(images.parent)
    out = tmp_path / "run.yaml"
    out.write_text("mine")
    init = ["init", *TINY, "--data-location", "images", "--out", str(out)]
    assert run(init) == 2
    assert "which is there already; expected --force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run([*init, "--force"]) == 0
    assert out.read_text() != "mine"


@pytest.mark.parametrize(("room", "method", "batch"), [(64e9, "flyp", 8), (2e6, "r-adapter", 1)])
def test_method_and_batch_fit_into_memory(images, tmp_path, monkeypatch, room, method, batch):
    """48 images less the validation's: at least four steps an epoch, so 8 of them at most."""
    from robustft.train import forewarn

    monkeypatch.setattr(forewarn, "free_memory", lambda device: int(room))
    monkeypatch.chdir(images.parent)
    out = tmp_path / "run.yaml"
    assert run(["init", *TINY, "--data-location", "images", "--out", str(out)]) == 0
    written = yaml.safe_load(out.read_text())
    assert (written["method"], written["batch_size"]) == (method, batch)


def test_reference_pairs_go_with_the_methods_that_need_them(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    init = ["init", *TINY, "--data-location", str(images), "--method", "dive"]
    assert run(init) == 2
    assert "--reference: got nothing, expected reference pairs" in capsys.readouterr().err
    assert run([*init, "--reference", "glyphs"]) == 0
    assert run(["train", "--config", "run.yaml", "--epochs", "1", "--reference-samples", "64"]) == 0


def test_what_is_not_there_or_is_there_twice_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["init", *TINY]) == 2
    assert "there is no folder data here" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    assert run(["init", *TINY]) == 2
    assert "data holds neither train/<class>/<image>" in capsys.readouterr().err
    for name in ("a", "b"):
        (tmp_path / "data" / f"{name}.csv").write_text("path,label\nx.png,0\ny.png,0\n")
    (tmp_path / "data" / "classnames.txt").write_text("one\n")
    assert run(["init", *TINY]) == 2
    assert "holds data/a.csv, data/b.csv; expected one of them" in capsys.readouterr().err

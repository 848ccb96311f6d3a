"""Every command ends with what it wrote, and with commands that can be typed next."""

import shlex
from pathlib import Path

import pytest

from robustft.cli import parser
from robustft.cli.app import VERBS, found, run

pytest.importorskip("yaml")

TINY = ["--model", "robustft-tiny", "--pretrained", "glyphs"]


def _ends(words, capsys):
    """Run a command; the paths that it says it wrote, and the verbs that come next."""
    capsys.readouterr()
    assert run([str(word) for word in words]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("next:")
    written = [Path(x.removeprefix("written: ")) for x in lines[:start] if x.startswith("written:")]
    assert all(path.exists() for path in written)
    verbs = []
    for line in lines[start + 1 :]:
        program, *rest = shlex.split(line)
        if program == "robustft":
            assert parser.parse(rest[0], found(VERBS[rest[0]].options), None, rest[1:])
        verbs.append(rest[0])
    assert verbs
    return [path.name for path in written], verbs


def test_each_says_what_it_wrote_and_what_is_next(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").symlink_to(images)
    data = ["--data-location", "my data"]
    short = ["--epochs", "1", "--batch-size", "8", "--lr", "1e-3", "--device", "cpu"]
    train = ["train", *TINY, *data, *short, "--method", "ft", "--name", "a run", "--id", "my data"]
    follow = ["wise-ft", "ose", "vrf", "report"]
    assert _ends(train, capsys) == (["a run"], follow)
    assert _ends([*train, "--resume", "latest"], capsys) == ([], follow)
    results = "results.jsonl"
    ends = {
        "eval": ([results], ["report"]),
        "wise-ft": (["wise-ft.safetensors", results], ["report"]),
        "ose": ([results], ["report"]),
        "vrf": (["vrf.safetensors", results], ["report"]),
    }
    for verb, expected in ends.items():
        assert _ends([verb, "--run", "logs/a run", "--id", "my data"], capsys) == expected
    weights = "logs/a run/model.safetensors"
    soup = ["soup", "--model", "robustft-tiny", "--finetuned", weights, "--finetuned", weights]
    soup += [*data, "--id", "my data", "--out", "soup", "--device", "cpu"]
    assert _ends(soup, capsys) == (["soup.safetensors", results], ["report"])
    assert _ends(["report", "--results-db", "logs"], capsys) == (
        ["report.html", "table.md"],
        ["export"],
    )
    export = ["export", "--run", "logs/a run", "--out"]
    assert _ends([*export, "out.safetensors"], capsys) == (["out.safetensors"], ["eval"])
    back = ["import", "--checkpoint", "out.safetensors", "--model", "robustft-tiny"]
    assert _ends([*back, "--out", "in.safetensors"], capsys) == (["in.safetensors"], ["eval"])
    embed = ["embed", *TINY, *data, "--feature-store", "kept", "--device", "cpu"]
    assert _ends(embed, capsys) == (["kept"], ["train"])
    alone = ["eval", *TINY, "--id", "my data", "--device", "cpu"]
    assert _ends(alone, capsys) == ([], ["init"])
    assert _ends([*alone, "--results-db", "lines.jsonl"], capsys) == (["lines.jsonl"], ["report"])

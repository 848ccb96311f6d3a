"""`robustft report`: result files, run folders, and folders of runs."""

import json

import pytest

from robustft.cli.app import run


def line(method, seed, accuracy):
    record = {"dataset": "Birds", "role": "id", "split": "test", "method": method, "seed": seed}
    return json.dumps({**record, "n": 50, "Birds:top1": accuracy}) + "\n"


@pytest.fixture
def logs(tmp_path):
    """Three run folders, one of them without results, and a file beside them."""
    for name, text in (
        ("ft-birds-0", line("zero-shot", 0, 0.5) + line("ft", 0, 0.75)),
        ("ft, birds 1", line("zero-shot", 1, 0.6) + line("ft", 1, 0.85)),
        ("flyp-birds-0", line("flyp", 0, 0.9)),
    ):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "results.jsonl").write_text(text)
    (tmp_path / "logs" / "unfinished").mkdir()
    (tmp_path / "logs" / "notes.txt").write_text("mine")
    return tmp_path / "logs"


def rows(text):
    """Method to the cell of its first column."""
    lines = [x.split("|") for x in text.splitlines() if x.startswith("|")]
    return {cells[1].strip(): cells[2].strip().strip("*") for cells in lines[2:]}


def test_a_folder_of_runs_is_one_table_over_their_seeds(logs, tmp_path, capsys):
    assert run(["report", "--results-db", str(logs), "--out", str(tmp_path / "out")]) == 0
    found = rows(capsys.readouterr().out)
    assert found == {"Zero-shot": "55.0 ± 7.1", "FT": "80.0 ± 7.1", "FLYP": "90.0"}
    assert (tmp_path / "out" / "report.html").is_file()
    assert rows((tmp_path / "out" / "table.md").read_text()) == found


@pytest.mark.parametrize("slash", ["", "/"])
def test_run_folders_and_files_may_be_named_one_by_one(logs, tmp_path, capsys, slash):
    """With a comma in a name, too."""
    named = [f"{logs / 'ft, birds 1'}{slash}", str(logs / "flyp-birds-0" / "results.jsonl")]
    options = ["--results-db", named[0], "--results-db", named[1]]
    assert run(["report", *options, "--out", str(tmp_path / "out")]) == 0
    assert rows(capsys.readouterr().out) == {"Zero-shot": "60.0", "FT": "85.0", "FLYP": "90.0"}


def test_a_folder_without_results_is_one_line(logs, tmp_path, capsys):
    for folder in (logs / "unfinished", tmp_path / "out"):
        folder.mkdir(exist_ok=True)
        assert run(["report", "--results-db", str(folder), "--out", str(tmp_path / "o")]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"robustft: --results-db: got {folder}, expected a results.jsonl")
    assert not (tmp_path / "o").exists()


def test_other_programs_results_are_read_and_nothing_is_said_that_they_do_not(tmp_path, capsys):
    curve = {0.0: (0.68, 0.58), 0.5: (0.81, 0.63), 1.0: (0.81, 0.54)}
    names = ("ImageNet:top1", "ImageNetV2:top1")
    lines = [{"alpha": a, names[0]: x, names[1]: y} for a, (x, y) in curve.items()]
    others = [{"model": f"rn{x}", names[0]: x, names[1]: x - 0.3} for x in (0.6, 0.8)]
    for file, found in (("wise.jsonl", lines), ("base.jsonl", others)):
        (tmp_path / file).write_text("".join(json.dumps(line) + "\n" for line in found))
    out = tmp_path / "out"
    files = ["--results-db", str(tmp_path / "wise.jsonl"), "--out", str(out)]
    assert run(["report", *files, "--baseline", str(tmp_path / "base.jsonl")]) == 0
    assert rows(capsys.readouterr().out) == {"Zero-shot": "68.0", "FT": "81.0", "WiSE-FT": "81.0"}
    assert "Effective robustness" in (out / "measures.md").read_text()
    page = (out / "report.html").read_text()
    assert "n = unknown" in page
    assert "not told" in page
    assert "validation data" not in page.partition("Methods paragraph")[2]
    assert "intervals are" not in page
    (tmp_path / "base.jsonl").write_text(json.dumps(others[0]) + "\n")
    assert run(["report", *files, "--baseline", str(tmp_path / "base.jsonl")]) == 2
    assert "baseline: points: got 1 models" in capsys.readouterr().err

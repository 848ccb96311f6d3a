"""`robustft` alone fits on a screen, shows commands that exist, and finds the next step."""

import shlex

import pytest

from robustft.cli import start
from robustft.cli.app import run

pytest.importorskip("yaml")


def _next(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert run([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 90
    here = lines[lines.index("here:") + 1 : -2]
    return [line.strip() for line in here[1::2]]


def test_the_commands_of_the_tasks_parse(tmp_path, monkeypatch):
    """Each up to the first file that is not there, or to its work."""
    from robustft.cli import parser
    from robustft.cli.app import VERBS, found

    for typed in start.TASKS.values():
        program, verb, *words = shlex.split(typed)
        if program == "robustft":
            assert parser.parse(verb, found(VERBS[verb].options), None, words)
        else:
            exec(words[0].partition(";")[0])


def test_the_next_step_is_the_one_that_the_folder_asks_for(tmp_path, monkeypatch, capsys):
    assert _next(tmp_path, monkeypatch, capsys) == ["robustft demo"]
    (tmp_path / "data" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "train" / ".cache").mkdir()
    assert _next(tmp_path, monkeypatch, capsys) == ["robustft init"]
    assert "classes: 1\n" in start.page()
    (tmp_path / "run.yaml").write_text("method: ft\n")
    train = "robustft train --config run.yaml"
    assert _next(tmp_path, monkeypatch, capsys) == [train]
    for name in ("a b", "c"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "config.yaml").touch()
    (tmp_path / "logs" / "c" / "model.safetensors").touch()
    resume = "robustft train --config 'logs/a b/config.yaml' --resume latest"
    report = "robustft report --results-db logs"
    assert _next(tmp_path, monkeypatch, capsys) == [resume, report, train]

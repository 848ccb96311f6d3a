"""Words of the command line become options, and what does not fit is one line."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from robustft.cli.options import setting
from robustft.cli.parser import parse
from robustft.errors import InputError

pytest.importorskip("yaml")


@dataclass(frozen=True)
class Options:
    names: list[str] = setting([], "Names.", positional=True)
    rate: float = setting(0.5, "A rate, 50 % or another.")
    count: int | None = setting(None, "A number [default: all].")
    some: list[float] = setting([0.5], "Numbers.")
    words: list[str] = setting([], "Words.", commas=False)
    folder: Path = setting(Path("logs"), "A folder.", also="--folder-dir")
    quiet: bool = setting(False, "Say nothing.")
    mode: str = setting("fast", "A mode.", choices=("fast", "slow"))


def _parse(text):
    return parse("verb", Options, "What it does.", text.split())


def test_names_stand_before_between_and_after_options():
    found = _parse("a --rate 2 b --words c,d --words e f --count=3")
    assert found.names == ["a", "b", "f"]
    assert (found.rate, found.count, found.words) == (2.0, 3, ["c,d", "e"])


def test_a_list_is_repeated_or_has_commas_and_the_last_of_others_counts():
    found = _parse("--some 0,0.5 --some 1 --rate 1 --rate -1 --folder-dir x")
    assert (found.some, found.rate, found.folder) == ([0.0, 0.5, 1.0], -1.0, Path("x"))


def test_what_is_on_or_off_has_two_spellings_and_the_file_is_overruled(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("quiet: true\nrate: 3\n")
    assert _parse(f"--config {file}").quiet is True
    found = _parse(f"--config {file} --no-quiet")
    assert (found.quiet, found.rate) == (False, 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--quit", "verb: No such option '--quit'; did you mean --quiet, --no-quiet"),
        ("--rat 3", "No such option '--rat'; did you mean --rate"),
        ("--zzz=3", "No such option '--zzz'; known: --config, --rate"),
        ("--rate", "--rate: got nothing, expected a value"),
        ("--rate fast", "--rate: got 'fast', expected a number"),
        ("--count 1.5", "--count: got '1.5', expected a whole number"),
        ("--mode medium", "--mode: got 'medium', expected one of fast, slow"),
        ("--quiet=3", "--quiet"),
    ],
)
def test_what_does_not_fit_is_named(text, message):
    with pytest.raises(InputError, match=message) as refused:
        _parse(text)
    assert "\n" not in str(refused.value)


def test_help_has_every_option_with_its_choices_and_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        _parse("--help")
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "usage: robustft verb [OPTIONS] [NAMES ...] What it does." in said
    assert "--quiet, --no-quiet" in said
    assert "--folder-dir PATH A folder. [default: logs]" in said
    assert "A rate, 50 % or another. [default: 0.5]" in said
    assert "One of: fast, slow. [default: fast]" in said
    assert "A number [default: all]. --" in said

"""What the command line needs, and what becomes of errors."""

import os
import subprocess
import sys

import pytest

from robustft import backends
from robustft.backends import card
from robustft.cli import app
from robustft.errors import InputError, InputWarning, warn

BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("yaml", "open_clip", "PIL"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Absent())
from robustft.cli.app import run
"""
HIDE = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "torch" else find(name, *more)
"""


def _bare(*lines):
    program = BARE + "\n".join(lines)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )


def test_help_and_version_need_no_extra_and_no_torch():
    done = _bare(
        "assert run(['--help']) == 0 and run([]) == 0 and run(['--version']) == 0",
        "assert run(['doctor', '--help']) == 0",
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules",
    )
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in (*app.VERBS, "doctor"))


def test_the_help_of_every_verb_needs_no_torch_and_lists_methods_of_others(tmp_path):
    """Methods and data sets are told by their names: nothing that a distribution brings is
    imported for it."""
    info = tmp_path / "lost-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lost\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robustft.methods]\nlost-ft = no_such_module:Lost\n")
    program = (
        "import sys\n"
        "from robustft.cli.app import VERBS, run\n"
        "for verb in VERBS:\n"
        "    assert run([*verb.split(), '--help']) == 0\n"
        "    heavy = {'torch', 'numpy', 'open_clip', 'accelerate'} & set(sys.modules)\n"
        "    assert not heavy, (verb, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, sys.path)])),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "dive, lost-ft. [default: flyp]" in " ".join(done.stdout.split())
    assert "no_such_module" not in done.stderr


@pytest.mark.parametrize("verb", app.VERBS)
def test_a_verb_says_what_it_does(verb, capsys):
    assert app.run([*verb.split(), "--help"]) == 0
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    assert usage.startswith(f"usage: robustft {verb}")
    about = rest.partition("\n\noptions:")[0]
    assert len(about.split()) > 5
    assert "Options of" not in about


def test_doctor_needs_no_extra_and_a_verb_names_the_one_it_needs():
    done = _bare("assert run(['doctor']) == 0", "sys.exit(run(['report']))")
    assert done.returncode == 2, done.stderr
    assert "reference  runs" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("robustft: yaml is not installed")
    assert "[train]'" in line


@pytest.mark.skipif(card.present(), reason="a card's kernels take their time")
@pytest.mark.parametrize("verb", ["verify", "tune"])
def test_the_verbs_of_a_card_need_no_extra(verb):
    done = _bare(f"sys.exit(run([{verb!r}]))")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(f"robustft: {verb}: found no card's kernel that runs here")


@pytest.mark.skipif(card.present(), reason="where a card is, torch is asked about it")
def test_doctor_imports_no_torch_where_no_card_is():
    done = _bare(
        "assert run(['doctor']) == 0",
        "assert not {'torch', 'numpy'} & set(sys.modules), 'imported'",
    )
    assert done.returncode == 0, done.stderr
    import torch

    assert f"reference  runs          torch {torch.__version__}" in done.stdout
    assert "CUDA device: none" in done.stdout
    for op, modules in backends.IMPLEMENTATIONS.items():
        assert f"  {op:10} {', '.join(modules)}" in done.stdout


def test_doctor_says_so_where_torch_is_not_installed():
    hidden = BARE.replace('("yaml", ', '("torch", "yaml", ')
    hidden = hidden.replace("sys.meta_path.insert", HIDE + "sys.meta_path.insert")
    program = hidden + "assert run(['doctor']) == 0"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "reference  does not run  torch is not installed" in done.stdout
    assert "CUDA device: none" in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("x: got\n  1,\nexpected 2"), 2, "robustft: x: got 1, expected 2\n"),
        (KeyboardInterrupt(), 130, "robustft: interrupted\n"),
        (
            KeyboardInterrupt("stopped; continue with y"),
            130,
            "robustft: stopped; continue with y\n",
        ),
        (FileNotFoundError(2, "No such file", "a b"), 2, "robustft: No such file (a b)\n"),
        (
            MemoryError("(3 GiB)"),
            2,
            "robustft: out of memory (3 GiB); try a smaller --batch-size\n",
        ),
    ],
)
def test_an_error_is_one_line_and_a_code(error, code, said, monkeypatch, capsys):
    from robustft.cli import report

    def fail(_):
        raise error

    monkeypatch.setattr(report, "report", fail)
    assert app.run(["report"]) == code
    assert capsys.readouterr().err == said


def test_a_warning_about_the_input_is_one_line(monkeypatch, capsys):
    from robustft.cli import report

    def say(_):
        warn("two\nlines")

    monkeypatch.setattr(report, "report", say)
    assert issubclass(InputWarning, UserWarning)
    assert app.run(["report"]) == 0
    assert capsys.readouterr().err == "robustft: two lines\n"


def test_an_unknown_verb_names_the_nearest(capsys):
    assert app.run(["evla"]) == 2
    assert "No such command 'evla'; did you mean eval?" in capsys.readouterr().err
    assert app.run(["doctor", "now"]) == 2
    assert (
        "doctor: No such option 'now'; known: --config, --data-location" in capsys.readouterr().err
    )


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments):
    command = [sys.executable, "-m", "robustft", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"")

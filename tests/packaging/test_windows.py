"""What Windows lacks is taken away, and what a user there reaches still works."""

import os
import subprocess
import sys

import pytest

from robustft import jsonlines

pytest.importorskip("accelerate")

# Packages of others are imported first: they know what system they are on.
PROGRAM = """
import contextlib, importlib, os, pkgutil, signal, sys

for name in ("torch", "accelerate", "open_clip", "scipy.stats", "sklearn.datasets", "tqdm",
             "filelock", "psutil", "jinja2", "triton", "platformdirs"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
for name in ("fcntl", "termios", "resource", "pwd", "grp", "pty", "tty", "syslog"):
    sys.modules[name] = None
for module, names in (
    (signal, "SIGHUP SIGKILL SIGALRM SIGUSR1 SIGUSR2 SIGPIPE pthread_sigmask"),
    (os, "fork sysconf sched_getaffinity uname killpg getpgid setsid nice"),
):
    for name in names.split():
        delattr(module, name)

import robustft

for found in pkgutil.walk_packages(robustft.__path__, "robustft."):
    if found.name != "robustft.__main__":
        try:
            importlib.import_module(found.name)
        except ImportError as error:  # of a package that is not here
            assert (error.name or "").partition(".")[0] in ("triton", "cupy"), error
from robustft.cli.app import run
from robustft.cli.compare import _ended_by_signals

with _ended_by_signals():
    pass
sys.exit(run(sys.argv[1:]))
"""


def test_every_module_is_imported_and_a_run_trained_without_what_windows_lacks(tmp_path):
    command = [
        *("train", "--method", "linear-probe", "--lr", "0.1", "--name", "run"),
        *("--model", "robustft-tiny", "--pretrained", "glyphs", "--data-location", "digits"),
        *("--eval-datasets", "digits", "--epochs", "1", "--batch-size", "256", "--aug", "none"),
        *("--device", "cpu", "--logs", str(tmp_path)),
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.jsonl").is_file()


def test_lines_are_locked_by_a_file_beside_them_where_files_have_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "fcntl", None)
    asked = []
    held = jsonlines.locks.held
    monkeypatch.setattr(
        jsonlines.locks, "held", lambda path, **more: asked.append(path) or held(path, **more)
    )
    jsonlines.append(tmp_path / "a.jsonl", {"x": 1})
    jsonlines.append(tmp_path / "a.jsonl", {"x": 2})
    assert [value for _, value in jsonlines.read(tmp_path / "a.jsonl")] == [{"x": 1}, {"x": 2}]
    assert asked == 2 * [tmp_path / "a.jsonl.lock"]


def test_a_sign_that_a_code_page_lacks_is_spelled_out():
    done = subprocess.run(
        [sys.executable, "-m", "robustft", "vrf", "--help"],
        env=dict(os.environ, PYTHONIOENCODING="cp1252"),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u03c3(-(d-a)/b)" in done.stdout

"""What the suite for a card does before there is one."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SUITE = Path(__file__).parents[2] / "benchmarks" / "card" / "gpu_suite.sh"


def test_the_suite_names_what_it_knows(tmp_path):
    done = subprocess.run(
        ["bash", SUITE, "check"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert "got 'check', expected " in done.stderr
    for word in ("checks", "measures", "tuning", "smoke"):
        assert word in done.stderr


def wheel(folder: Path, name: str, version: str) -> None:
    """A pure-Python wheel of one empty module."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        file.writestr(f"{info}/RECORD", "")


def test_peers_come_from_wheels_and_only_those_that_are_not_there(tmp_path):
    pytest.importorskip("pip")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "a_peer", "1.0")
    wheel(wheels, "numpy", "0.0.1")
    (wheels / "broken-1.0-py3-none-any.whl").write_text("no wheel")
    given = os.environ | {"WHEELS": str(wheels), "OUT": str(tmp_path), "PYTHON": sys.executable}
    subprocess.run(["bash", SUITE, "peers"], env=given, capture_output=True, check=True)
    steps = {
        words[1]: words[4:]
        for line in (tmp_path / "summary.txt").read_text().splitlines()
        if (words := line.split())[:1] == ["peer"]
    }
    assert steps == {"a_peer": ["ok"], "broken": ["failed", "(1)"]}
    assert "numpy is installed" in (tmp_path / "suite.log").read_text()

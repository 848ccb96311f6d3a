"""The campaign of tests/fuzz.py makes the checks that it counts, and ends with 1 at a miss."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from robustft import ops

ROOT = Path(__file__).parents[2]


def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "tests" / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_campaign_makes_its_checks_on_the_instruction_set_that_it_names(native: str) -> None:
    from robustft import _native

    command = [sys.executable, "-m", "tests.fuzz", "--checks", "3", "--op", "vrf"]
    command += ["--isa", _native.isas()[0]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 checks, 0 misses" in done.stdout


def test_a_wrong_answer_is_a_miss(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ops.vrf_mix
    monkeypatch.setattr(
        ops,
        "vrf_mix",
        lambda z, *rest, **more: plain(z, *rest, **more) + (0.1 if len(z) > 9 else 0),
    )
    with pytest.raises(AssertionError):
        fuzz().run("vrf", 50, 0)
    monkeypatch.undo()
    assert fuzz().run("vrf", 50, 0) == 50

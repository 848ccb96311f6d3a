"""A test that loses the card to its process does not fail those after it (no card needed)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILE = """
import pytest, torch

pytestmark = pytest.mark.gpu
torch.cuda.is_available = lambda: True
torch.cuda.synchronize = lambda: None


def test_wrong():
    raise AssertionError


def test_after_a_plain_failure():
    pass


def test_illegal_access():
    def synchronize():
        raise RuntimeError("an illegal memory access was encountered")

    torch.cuda.synchronize = synchronize
    synchronize()


def test_after_it():
    raise AssertionError
"""


def test_what_comes_after_is_skipped_with_the_reason(tmp_path):
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(FILE)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider"]
    command += ["-o", "markers=gpu", str(tmp_path)]
    environment = os.environ | {"ROBUSTFT_REHEARSE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "2 failed, 1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "test_illegal_access lost the card to this process" in done.stdout

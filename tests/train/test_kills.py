"""`python -m tests.kills`, for a few kills."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits():
    command = [sys.executable, "-m", "tests.kills", "--times", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "every one ended with the bits of a whole run" in done.stdout

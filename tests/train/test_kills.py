"""`python -m tests.kills`, for a few kills."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(processes):
    times = "3" if processes == 1 else "2"
    command = [sys.executable, "-m", "tests.kills", "--times", times, "--processes"]
    command.append(str(processes))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "every one ended with the bits of a whole run" in done.stdout

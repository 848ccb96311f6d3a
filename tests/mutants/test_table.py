"""The planted faults fit the code as it is now; planting them is `python -m tests.mutants`."""

from pathlib import Path

import pytest

from . import package, table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", [*package.MUTANTS, *table.MUTANTS], ids=lambda m: m.name)
def test_a_planted_fault_has_its_place(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.text) == 1
    assert mutant.text != mutant.becomes
    if not mutant.tests.startswith("native:"):
        named = [part for part in mutant.tests.split() if part.startswith("tests/")]
        assert named
        assert all((ROOT / name).is_file() for name in named)


def test_names_tell_planted_faults_apart():
    names = [mutant.name for mutant in (*package.MUTANTS, *table.MUTANTS)]
    assert len(set(names)) == len(names) >= 20

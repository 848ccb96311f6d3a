"""Every Triton kernel in every configuration compiles for cards that are not here."""

import pytest

pytest.importorskip("triton")

from benchmarks import cubins
from robustft import backends


@pytest.mark.skipif(backends.interpreting(), reason="the interpreter's kernels do not compile")
def test_every_configuration_fits_and_does_not_spill_where_it_matters():
    for usage in cubins.run(list(cubins.cases())):
        assert usage.registers <= 255, usage
        assert usage.looped == 0, usage
        assert usage.spilled <= cubins.COLD, usage
        assert usage.shared <= cubins.SHARED[usage.case.capability], usage

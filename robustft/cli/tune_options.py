"""The options of `robustft tune`."""

from __future__ import annotations

from dataclasses import dataclass

from robustft import backends
from robustft.choices import KERNEL_DTYPES
from robustft.cli.options import setting


@dataclass(frozen=True)
class TuneOptions:
    """Time every op's backends, and tiles of its Triton kernels, on this machine's card.

    A kernel has to prove itself first (robustft verify), and tiles have to give right numbers. What
    is fastest from which size on is remembered, and `auto` goes by it: after an update of robustft,
    torch, Triton, CuPy or the driver, tune again. Exit code 2 if an op failed.
    """

    op: list[str] = setting([], "Ops to tune: all by default.", choices=backends.OPS)
    dtype: list[str] = setting(
        [], "float32, bfloat16, float16: all by default.", choices=KERNEL_DTYPES
    )
    rows: list[int] = setting([], "Sizes of batches to measure at: some by default.")
    width: int = setting(0, "Width of a row (classes of vrf); 0: the op's own.")
    thorough: bool = setting(False, "More tiles to choose from: some minutes an op.")
    limit: int = setting(900, "Seconds that one op and dtype may take, compiling included.")

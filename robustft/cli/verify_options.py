"""The options of `robustft verify`."""

from __future__ import annotations

from dataclasses import dataclass

from robustft import backends
from robustft.backends.card import KERNELS
from robustft.choices import KERNEL_DTYPES
from robustft.cli.options import setting


@dataclass(frozen=True)
class VerifyOptions:
    """Ask every kernel of this machine's card for the right numbers, and remember the verdicts.

    Each is asked in a process of its own, so that one that hangs or crashes harms no other. `auto`
    then takes those that passed and are faster than the reference. Exit code 2 if one failed.
    """

    op: list[str] = setting([], "Ops to verify: all by default.", choices=backends.OPS)
    backend: list[str] = setting([], "triton, cuda: both by default.", choices=KERNELS)
    dtype: list[str] = setting(
        [], "float32, bfloat16, float16: all by default.", choices=KERNEL_DTYPES
    )
    limit: int = setting(300, "Seconds that one kernel may take, compiling included.")

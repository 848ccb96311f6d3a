"""The drop-in ops: arguments are checked, a backend is chosen, autograd is tied to it."""

from robustft.ops.dive import dive_loss
from robustft.ops.mpm_nce import mpm_nce
from robustft.ops.vrf import vrf_mix

__all__ = ["dive_loss", "mpm_nce", "vrf_mix"]

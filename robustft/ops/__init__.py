"""The drop-in ops: arguments are checked, a backend is chosen, autograd is tied to it."""

from robustft.ops.bank import FeatureBank
from robustft.ops.dive import dive_loss
from robustft.ops.mpm_nce import mpm_nce
from robustft.ops.nearest import knn, kth_distance
from robustft.ops.rsa import rsa
from robustft.ops.vrf import vrf_mix

__all__ = ["FeatureBank", "dive_loss", "knn", "kth_distance", "mpm_nce", "rsa", "vrf_mix"]

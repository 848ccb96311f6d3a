"""The drop-in ops: arguments are checked, a backend is chosen, autograd is tied to it."""

import warnings

from robustft.installation import without_kernels
from robustft.ops.bank import FeatureBank
from robustft.ops.dive import dive_loss
from robustft.ops.mpm_nce import mpm_nce
from robustft.ops.nearest import knn, kth_distance
from robustft.ops.rsa import rsa
from robustft.ops.vrf import vrf_mix

__all__ = ["FeatureBank", "dive_loss", "knn", "kth_distance", "mpm_nce", "rsa", "vrf_mix"]

_problem = without_kernels()
if _problem is not None:
    # As in robustft/__init__.py: one line, without source.
    warnings.warn_explicit(_problem, RuntimeWarning, filename="robustft", lineno=1)
del _problem

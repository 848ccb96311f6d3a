"""The drop-in ops: arguments are checked, a backend is chosen, autograd is tied to it."""

from robustft.ops.dive import dive_loss
from robustft.ops.mpm_nce import mpm_nce
from robustft.ops.nearest import FeatureBank, knn, kth_distance
from robustft.ops.rsa import rsa

__all__ = ["FeatureBank", "dive_loss", "knn", "kth_distance", "mpm_nce", "rsa"]

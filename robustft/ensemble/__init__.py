"""After training: weight space (WiSE-FT), output space (OSE) and sample-wise (VRF) ensembles."""

from robustft.ensemble.calibrate import matching_temperature
from robustft.ensemble.output import output_ensemble
from robustft.ensemble.select import ALPHAS, Choice, select_alpha, select_output_alpha
from robustft.ensemble.vrf import VRF
from robustft.ensemble.wise_ft import wise_ft

__all__ = [
    "ALPHAS",
    "VRF",
    "Choice",
    "matching_temperature",
    "output_ensemble",
    "select_alpha",
    "select_output_alpha",
    "wise_ft",
]

"""After training: mixtures of weights (WiSE-FT, soups, TPGM) and of outputs (OSE, LSE, VRF)."""

from robustft.ensemble.calibrate import matching_temperature
from robustft.ensemble.output import output_ensemble
from robustft.ensemble.select import ALPHAS, Choice, select_alpha, select_output_alpha
from robustft.ensemble.soup import Recipe, greedy_soup, uniform_soup
from robustft.ensemble.sweep import sweep_outputs
from robustft.ensemble.tpgm import Projection, project, tpgm
from robustft.ensemble.two_heads import TwoHeads, same_encoder
from robustft.ensemble.vrf import VRF
from robustft.ensemble.wise_ft import wise_ft

__all__ = [
    "ALPHAS",
    "VRF",
    "Choice",
    "Projection",
    "Recipe",
    "TwoHeads",
    "greedy_soup",
    "matching_temperature",
    "output_ensemble",
    "project",
    "same_encoder",
    "select_alpha",
    "select_output_alpha",
    "sweep_outputs",
    "tpgm",
    "uniform_soup",
    "wise_ft",
]

"""Accuracy, retrieval, calibration, geometry and the records of evaluations."""

from robustft.evaluate.collect import Outputs, collect
from robustft.evaluate.geometry import rsa_scores
from robustft.evaluate.metrics import ece, fit_temperature, nll, top1, wilson_interval
from robustft.evaluate.paired import bootstrap_difference, mcnemar
from robustft.evaluate.ratio import ratio_curve
from robustft.evaluate.results import append_result, check_result, read_results
from robustft.evaluate.retrieval import recalls, retrieve

__all__ = [
    "Outputs",
    "append_result",
    "bootstrap_difference",
    "check_result",
    "collect",
    "ece",
    "fit_temperature",
    "mcnemar",
    "nll",
    "ratio_curve",
    "read_results",
    "recalls",
    "retrieve",
    "rsa_scores",
    "top1",
    "wilson_interval",
]

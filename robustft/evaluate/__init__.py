"""Accuracy, retrieval, calibration, geometry and the records of evaluations."""

from robustft.evaluate.calibration import adaptive_ece, brier, ece, nll
from robustft.evaluate.collect import Outputs, collect
from robustft.evaluate.geometry import difference_spread, linear_cka, rsa_scores
from robustft.evaluate.metrics import (
    fit_temperature,
    mean_per_class,
    top1,
    top_k,
    wilson_interval,
)
from robustft.evaluate.paired import bootstrap_difference, mcnemar
from robustft.evaluate.ratio import ratio_curve
from robustft.evaluate.results import append_result, check_result, read_results
from robustft.evaluate.retrieval import recalls, retrieve

__all__ = [
    "Outputs",
    "adaptive_ece",
    "append_result",
    "bootstrap_difference",
    "brier",
    "check_result",
    "collect",
    "difference_spread",
    "ece",
    "fit_temperature",
    "linear_cka",
    "mcnemar",
    "mean_per_class",
    "nll",
    "ratio_curve",
    "read_results",
    "recalls",
    "retrieve",
    "rsa_scores",
    "top1",
    "top_k",
    "wilson_interval",
]

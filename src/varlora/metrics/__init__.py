"""Metrics of probabilistic predictions: `evaluate` for all of them, or one by one.

scoring: accuracy, NLL, Brier. calibration: ECE and its kin. ranking: AUROC, FPR95, risk and coverage. uncertainty:
entropies of sampled predictions. bootstrap: intervals and paired differences. selection: which of several to take.
"""

from varlora.metrics.bootstrap import Interval, bootstrap_interval, paired_difference
from varlora.metrics.calibration import (
    ReliabilityBin,
    classwise_calibration_error,
    equal_mass_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
)
from varlora.metrics.evaluation import compare, evaluate, evaluate_with_intervals
from varlora.metrics.ranking import accuracy_at_coverage, aurc, auroc, fpr95, risk_coverage
from varlora.metrics.scoring import accuracy, brier, confidence_and_correct, nll
from varlora.metrics.selection import largest_free, not_worse, one_standard_error, paired_error
from varlora.metrics.uncertainty import (
    entropy,
    expected_entropy,
    mean_log_probs,
    mutual_information,
    predictive_entropy,
)

__all__ = [
    "Interval",
    "ReliabilityBin",
    "accuracy",
    "accuracy_at_coverage",
    "aurc",
    "auroc",
    "bootstrap_interval",
    "brier",
    "classwise_calibration_error",
    "compare",
    "confidence_and_correct",
    "entropy",
    "equal_mass_calibration_error",
    "evaluate",
    "evaluate_with_intervals",
    "expected_calibration_error",
    "expected_entropy",
    "fpr95",
    "largest_free",
    "maximum_calibration_error",
    "mean_log_probs",
    "mutual_information",
    "nll",
    "not_worse",
    "one_standard_error",
    "paired_difference",
    "paired_error",
    "predictive_entropy",
    "reliability_bins",
    "risk_coverage",
]

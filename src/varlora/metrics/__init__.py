"""Metrics of probabilistic predictions: `evaluate` for all of them, or one by one.

scoring: accuracy, NLL, Brier. calibration: ECE and its kin. ranking: AUROC, FPR95, risk and coverage. uncertainty:
entropies of sampled predictions. voting: answers in words or numbers by several draws. bootstrap: intervals
and paired differences. selection: which of several to take. conformal, selective, selective_accuracy: sets of answers,
and which rows to answer, with a guarantee; binomial: exact intervals of shares.
"""

from varlora.metrics.binomial import beta_quantile, binomial_cdf, clopper_pearson
from varlora.metrics.bootstrap import Interval, bootstrap_interval, paired_difference
from varlora.metrics.calibration import (
    ReliabilityBin,
    classwise_calibration_error,
    equal_mass_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
)
from varlora.metrics.conformal import (
    SetThreshold,
    conformal_rank,
    conformal_scores,
    conformal_threshold,
    fewest_rows,
    prediction_sets,
    set_metrics,
    threshold_for_sets,
)
from varlora.metrics.evaluation import compare, evaluate, evaluate_with_intervals
from varlora.metrics.ranking import accuracy_at_coverage, aurc, auroc, fpr95, risk_coverage
from varlora.metrics.scoring import accuracy, brier, confidence_and_correct, nll
from varlora.metrics.selection import (
    WORTHWHILE,
    independent,
    is_free,
    largest_free,
    not_worse,
    one_standard_error,
    paired_error,
    standard_errors_for,
)
from varlora.metrics.selective import CoverageThreshold, answered_metrics, sureness, threshold_for_coverage
from varlora.metrics.selective_accuracy import AccuracyThreshold, CannotGuaranteeError, threshold_for_accuracy
from varlora.metrics.temperature import (
    TemperatureFit,
    cross_fitted,
    fit_temperature,
    likeliest_temperature,
    temperature_fit,
)
from varlora.metrics.uncertainty import (
    entropy,
    expected_entropy,
    mean_log_probs,
    mutual_information,
    predictive_entropy,
)
from varlora.metrics.voting import evaluate_answers, evaluate_answers_with_intervals, majority

__all__ = [
    "WORTHWHILE",
    "AccuracyThreshold",
    "CannotGuaranteeError",
    "CoverageThreshold",
    "Interval",
    "ReliabilityBin",
    "SetThreshold",
    "TemperatureFit",
    "accuracy",
    "accuracy_at_coverage",
    "answered_metrics",
    "aurc",
    "auroc",
    "beta_quantile",
    "binomial_cdf",
    "bootstrap_interval",
    "brier",
    "classwise_calibration_error",
    "clopper_pearson",
    "compare",
    "confidence_and_correct",
    "conformal_rank",
    "conformal_scores",
    "conformal_threshold",
    "cross_fitted",
    "entropy",
    "equal_mass_calibration_error",
    "evaluate",
    "evaluate_answers",
    "evaluate_answers_with_intervals",
    "evaluate_with_intervals",
    "expected_calibration_error",
    "expected_entropy",
    "fewest_rows",
    "fit_temperature",
    "fpr95",
    "independent",
    "is_free",
    "largest_free",
    "likeliest_temperature",
    "majority",
    "maximum_calibration_error",
    "mean_log_probs",
    "mutual_information",
    "nll",
    "not_worse",
    "one_standard_error",
    "paired_difference",
    "paired_error",
    "prediction_sets",
    "predictive_entropy",
    "reliability_bins",
    "risk_coverage",
    "set_metrics",
    "standard_errors_for",
    "sureness",
    "temperature_fit",
    "threshold_for_accuracy",
    "threshold_for_coverage",
    "threshold_for_sets",
]

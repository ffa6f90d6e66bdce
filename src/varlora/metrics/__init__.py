"""Metrics of probabilistic predictions: `evaluate` for all of them, or one by one.

table: every metric with its function, direction, words and interval (`METRICS`, `register_metric`). rows: what they
are computed from. scoring: accuracy, NLL, Brier. calibration: ECE and its kin. ranking: AUROC, FPR95, risk and
coverage. uncertainty: entropies of sampled predictions. voting: answers in words or numbers by several draws.
resampling: the bootstrap, and exact intervals of shares. selection: which of several to take. conformal, selective,
selective_accuracy, by_group, bands: sets of answers, which rows to answer, and bands of confidence, with a guarantee.
costs: what answers cost. recalibration, venn_abers: other probabilities. exchangeability: whether new rows are drawn as
those of a guarantee were.
"""

from varlora.metrics.bands import Band, bands_at, bands_for_accuracies, in_bands
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
from varlora.metrics.costs import CostOfRule, Costs, cost_of_rules
from varlora.metrics.evaluation import (
    check_metrics,
    compare,
    evaluate,
    evaluate_rows,
    evaluate_rows_with_intervals,
    evaluate_with_intervals,
)
from varlora.metrics.exchangeability import ConformalTestMartingale, check_exchangeability
from varlora.metrics.metric import Metric
from varlora.metrics.ranking import accuracy_at_coverage, aurc, auroc, fpr95, risk_coverage
from varlora.metrics.recalibration import choose_recalibration
from varlora.metrics.resampling import Interval, bootstrap, clopper_pearson
from varlora.metrics.rows import ClassRows, CompletionRows, ScopeRows
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
from varlora.metrics.table import HEADLINE, METRICS, metric_named, register_metric, shown_metrics
from varlora.metrics.temperature import TemperatureFit, cross_fitted, fit_temperature, likeliest_temperature
from varlora.metrics.uncertainty import (
    entropy,
    expected_entropy,
    mean_log_probs,
    mutual_information,
    predictive_entropy,
)
from varlora.metrics.venn_abers import VennAbers, fit_venn_abers
from varlora.metrics.voting import AnswerRows, majority

__all__ = [
    "HEADLINE",
    "METRICS",
    "WORTHWHILE",
    "AccuracyThreshold",
    "AnswerRows",
    "Band",
    "CannotGuaranteeError",
    "ClassRows",
    "CompletionRows",
    "ConformalTestMartingale",
    "CostOfRule",
    "Costs",
    "CoverageThreshold",
    "Interval",
    "Metric",
    "ReliabilityBin",
    "ScopeRows",
    "SetThreshold",
    "TemperatureFit",
    "VennAbers",
    "accuracy",
    "accuracy_at_coverage",
    "answered_metrics",
    "aurc",
    "auroc",
    "bands_at",
    "bands_for_accuracies",
    "bootstrap",
    "brier",
    "check_exchangeability",
    "check_metrics",
    "choose_recalibration",
    "classwise_calibration_error",
    "clopper_pearson",
    "compare",
    "confidence_and_correct",
    "conformal_rank",
    "conformal_scores",
    "conformal_threshold",
    "cost_of_rules",
    "cross_fitted",
    "entropy",
    "equal_mass_calibration_error",
    "evaluate",
    "evaluate_rows",
    "evaluate_rows_with_intervals",
    "evaluate_with_intervals",
    "expected_calibration_error",
    "expected_entropy",
    "fewest_rows",
    "fit_temperature",
    "fit_venn_abers",
    "fpr95",
    "in_bands",
    "independent",
    "is_free",
    "largest_free",
    "likeliest_temperature",
    "majority",
    "maximum_calibration_error",
    "mean_log_probs",
    "metric_named",
    "mutual_information",
    "nll",
    "not_worse",
    "one_standard_error",
    "paired_error",
    "prediction_sets",
    "predictive_entropy",
    "register_metric",
    "reliability_bins",
    "risk_coverage",
    "set_metrics",
    "shown_metrics",
    "standard_errors_for",
    "sureness",
    "threshold_for_accuracy",
    "threshold_for_coverage",
    "threshold_for_sets",
]

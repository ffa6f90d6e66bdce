"""The decision that does what is wanted of a run's answers, chosen on labelled rows that are not reported."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from varlora.metrics import (
    SetThreshold,
    confidence_and_correct,
    fewest_rows,
    sureness,
    threshold_for_accuracy,
    threshold_for_coverage,
    threshold_for_sets,
)
from varlora.metrics.bands import Band, bands_at, bands_for_accuracies
from varlora.metrics.by_group import fit_by_group
from varlora.metrics.conformal import SetScore
from varlora.metrics.costs import Costs, cost_of_rules
from varlora.metrics.recalibration import Temperatures, Way, choose_recalibration, recalibrated
from varlora.metrics.selective import Sureness
from varlora.metrics.selective_accuracy import DELTA, fewest_answers
from varlora.metrics.uncertainty import mean_log_probs
from varlora.runs.calibration import Calibration
from varlora.runs.decision import Decision, Groups
from varlora.runs.decision_file import Threshold
from varlora.runs.predicted_as import PredictedAs

logger = logging.getLogger(__name__)

MOST_SCORES = 2000
"""So many of the rows' scores are kept for `Decision.check_exchangeability`, drawn at random if there are more."""


@dataclass(frozen=True, kw_only=True)
class WantedBands:
    """Bands of confidence.

    Attributes:
        names: the surest first; the last takes what is left.
        cuts: the least sureness of each but the last; or
        accuracies: the accuracy that each but the last guarantees.
    """

    names: tuple[str, ...]
    cuts: tuple[float, ...] | None = None
    accuracies: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.cuts is None) == (self.accuracies is None):
            raise ValueError("bands are made by cuts or by accuracies: give one of them.")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for.

    Attributes:
        coverage: the share of rows to answer.
        accuracy: the accuracy of the answers.
        costs: of answers and of abstaining; one of these three at most.
        delta: the chance that the guarantee of the accuracy may fail.
        by: what tells how sure an answer is.
        sets: the probability that a set holds the right answer.
        set_score: by which score the sets are made.
        bands: of confidence.
        recalibrate: ways to recalibrate the probabilities that are tried; on half of the rows, drawn at random, so that
            what is guaranteed is chosen on rows to which nothing was fitted.
    """

    coverage: Fraction | None = None
    accuracy: Fraction | None = None
    costs: Costs | None = None
    delta: float = DELTA
    by: Sureness = "confidence"
    sets: Fraction | None = None
    set_score: SetScore = "lac"
    bands: WantedBands | None = None
    recalibrate: tuple[Way, ...] = ()


def choose_decision(
    wanted: Wanted, calibration: Calibration, *, group_column: str | None = None, groups: Groups | None = None
) -> Decision:
    """The decision that does what is asked for.

    Args:
        wanted: what is asked for.
        calibration: labelled rows that are not reported.
        group_column: what the rows' groups are called, where thresholds are to be chosen by group.
        groups: the rows' groups, then.

    Raises:
        ValueError: the rows do not suffice for the accuracy (`CannotGuaranteeError`), or an option does not fit.
    """
    every = calibration.prediction
    if (group_column is None) != (groups is None):
        raise ValueError("give group_column and groups, or neither.")
    named: Groups = groups if groups is not None else [None] * len(every.labels)
    if len(named) != len(every.labels):
        raise ValueError(f"there are {len(named)} groups for {len(every.labels)} rows.")
    if sum(rule is not None for rule in (wanted.coverage, wanted.accuracy, wanted.costs)) > 1:
        raise ValueError("give a coverage, an accuracy or costs, one of them: rows are answered by one rule.")
    if "venn_abers" in wanted.recalibrate and wanted.by == "mutual_information":
        raise ValueError(
            "Venn–Abers gives one probability for all draws, and mutual information is how far they differ."
        )
    recalibration, said, chosen_on = None, "", calibration.chosen_on
    log_probs, labels = every.log_probs, every.labels
    if wanted.recalibrate:
        fitted_to, rest = _halves(len(labels))
        choice = choose_recalibration(
            wanted.recalibrate,
            log_probs[fitted_to],
            labels[fitted_to],
            None if groups is None else [named[n] for n in fitted_to.tolist()],
        )
        recalibration, said = choice.fitted, choice.sentence
        named = [named[n] for n in rest.tolist()]
        log_probs, labels = recalibrated(recalibration, log_probs[rest], named), labels[rest]
        chosen_on = dataclasses.replace(chosen_on, rows=len(labels))
    probs = mean_log_probs(log_probs).exp()
    threshold, group_thresholds = _thresholds(wanted, log_probs, labels, named)
    sets, group_sets = _set_thresholds(wanted, log_probs, labels, named)
    by_group = isinstance(recalibration, Temperatures) and bool(recalibration.by_group)
    if groups is not None and not by_group and threshold is None and sets is None:
        logger.warning("nothing is decided by %r: costs and bands are one for all rows", group_column)
        group_column, named = None, []
    return Decision(
        chosen_on=chosen_on,
        predicted_as=PredictedAs.of(every),
        by=wanted.by,
        threshold=threshold,
        sets=sets,
        costs=wanted.costs,
        cost_of_rules=() if wanted.costs is None else cost_of_rules(wanted.costs, probs, labels),
        bands=_bands(wanted, log_probs, labels),
        delta=wanted.delta,
        recalibration=recalibration,
        recalibration_said=said,
        reference=_reference(probs.amax(1)),
        group_column=group_column,
        group_rows={name: named.count(name) for name in sorted({name for name in named if name is not None})},
        group_thresholds=group_thresholds,
        group_sets=group_sets,
    )


def _thresholds(
    wanted: Wanted, log_probs: Tensor, labels: Tensor, groups: Groups
) -> tuple[Threshold | None, dict[str, Threshold]]:
    """Of the rows that are answered: the common one, and those of the groups that are large enough."""
    if wanted.coverage is None and wanted.accuracy is None:
        return None, {}
    sure = sureness(log_probs, wanted.by)
    _, correct = confidence_and_correct(mean_log_probs(log_probs).exp(), labels)

    def fit(rows: Tensor) -> Threshold:
        if wanted.coverage is not None:
            return threshold_for_coverage(sure[rows], wanted.coverage)
        assert wanted.accuracy is not None
        return threshold_for_accuracy(sure[rows], correct[rows], wanted.accuracy, delta=wanted.delta)

    common = fit(torch.ones(len(labels), dtype=torch.bool))
    if wanted.coverage is not None:
        fewest = fewest_rows(1 - wanted.coverage)
    else:
        assert wanted.accuracy is not None
        fewest = fewest_answers(float(wanted.accuracy), wanted.delta)
    return common, fit_by_group(fit, groups, fewest=fewest)


def _set_thresholds(
    wanted: Wanted, log_probs: Tensor, labels: Tensor, groups: Groups
) -> tuple[SetThreshold | None, dict[str, SetThreshold]]:
    """Of the classes in a set: the common one, and those of the groups that are large enough."""
    if (probability := wanted.sets) is None:
        return None, {}

    def fit(rows: Tensor) -> SetThreshold:
        return threshold_for_sets(log_probs[rows], labels[rows], probability, score=wanted.set_score)

    common = fit(torch.ones(len(labels), dtype=torch.bool))
    return common, fit_by_group(fit, groups, fewest=fewest_rows(1 - probability))


def _bands(wanted: Wanted, log_probs: Tensor, labels: Tensor) -> tuple[Band, ...]:
    bands = wanted.bands
    if bands is None:
        return ()
    sure = sureness(log_probs, wanted.by)
    _, correct = confidence_and_correct(mean_log_probs(log_probs).exp(), labels)
    if bands.cuts is not None:
        return bands_at(sure, correct, bands.names, bands.cuts)
    assert bands.accuracies is not None
    return bands_for_accuracies(sure, correct, bands.names, bands.accuracies, delta=wanted.delta)


def _halves(rows: int) -> tuple[Tensor, Tensor]:
    """Which rows probabilities are recalibrated on, and which the rest is chosen on."""
    if rows < 2:
        raise ValueError("probabilities are recalibrated on half of the rows, and there is one.")
    dealt = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return dealt[: rows // 2].sort().values, dealt[rows // 2 :].sort().values


def _reference(confidence: Tensor) -> tuple[float, ...]:
    if len(confidence) > MOST_SCORES:
        drawn = torch.randperm(len(confidence), generator=torch.Generator().manual_seed(0))
        confidence = confidence[drawn[:MOST_SCORES]]
    return tuple(confidence.sort().values.tolist())

"""Which rows of a run are answered, and sets of answers: thresholds from its validation rows, applied to others.

The validation rows are predicted as the others are: the same posterior, mode and number of draws. Training has left
those predictions in the run's folder; they are made anew where something differs. Rows that are reported, too, are left
out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from varlora.metrics import (
    AccuracyThreshold,
    CoverageThreshold,
    SetThreshold,
    answered_metrics,
    confidence_and_correct,
    prediction_sets,
    set_metrics,
    sureness,
    threshold_for_accuracy,
    threshold_for_coverage,
    threshold_for_sets,
)
from varlora.metrics.conformal import SetScore
from varlora.metrics.selective import Sureness
from varlora.metrics.selective_accuracy import DELTA
from varlora.posterior import PredictionConfig
from varlora.posterior.draws import number_of_draws
from varlora.prediction.prediction import Prediction
from varlora.runs.config import RunConfig
from varlora.runs.data import load_task
from varlora.runs.folder import RunFolder
from varlora.runs.run import predict_split
from varlora.runs.setting import Setting
from varlora.runs.validation import unreported
from varlora.tasks import OUT_OF_SCOPE, Task

logger = logging.getLogger(__name__)

VALIDATION = "validation"
CALIBRATION = "calibration"
"""The split of a file's rows that take the validation rows' place."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for.

    Attributes:
        coverage: the share of rows to answer.
        accuracy: the accuracy of the answers; one of the two at most.
        delta: the chance that the guarantee of the accuracy may fail.
        by: what tells how sure an answer is.
        sets: the probability that a set holds the right answer.
        set_score: by which score the sets are made.
    """

    coverage: Fraction | None = None
    accuracy: Fraction | None = None
    delta: float = DELTA
    by: Sureness = "confidence"
    sets: Fraction | None = None
    set_score: SetScore = "lac"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The rows that thresholds are chosen on, predicted.

    Attributes:
        prediction: of the rows that are used.
        source: "validation", or the name of another file.
        left_out: how many labelled rows were left out because they are reported, too.
        also_used_for: what else the rows have decided, in words; each makes the guarantees a little less exact.
    """

    prediction: Prediction
    source: str
    left_out: int = 0
    also_used_for: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Thresholds, and what comes of them.

    Attributes:
        threshold: of the rows that are answered; None if that was not asked for.
        sets: of the classes in a set; None if that was not asked for.
        by: what tells how sure an answer is.
    """

    threshold: CoverageThreshold | AccuracyThreshold | None
    sets: SetThreshold | None
    by: Sureness

    def answered(self, prediction: Prediction) -> Tensor | None:
        """Which rows are answered, (N,) bool."""
        if self.threshold is None:
            return None
        return sureness(prediction.log_probs, self.by) >= self.threshold.value

    def sets_of(self, prediction: Prediction) -> Tensor | None:
        """Which classes are in a row's set, (N, C) bool."""
        return prediction_sets(prediction.log_probs, self.sets) if self.sets is not None else None

    def measure(self, prediction: Prediction) -> dict[str, dict[str, float]]:
        """What came of it: `answered` and `sets`, of the labelled rows where there are some, else of all."""
        known = prediction.labels >= 0
        labelled = bool(known.any())
        rows = known if labelled else torch.ones_like(known)
        labels = prediction.labels[rows] if labelled else None
        metrics = {}
        if (answered := self.answered(prediction)) is not None:
            correct = confidence_and_correct(prediction.probs[rows], labels)[1] if labels is not None else None
            metrics["answered"] = answered_metrics(answered[rows], correct)
        if (sets := self.sets_of(prediction)) is not None:
            metrics["sets"] = set_metrics(sets[rows], labels)
        return metrics


def select(wanted: Wanted, calibration: Prediction) -> Selection:
    """The thresholds that do what is asked for.

    Args:
        wanted: what is asked for.
        calibration: labelled rows that are not reported.

    Raises:
        ValueError: the rows do not suffice for the accuracy (`CannotGuaranteeError`), or an option does not fit.

    Example:
        >>> probs = torch.linspace(0.5, 0.99, 50, dtype=torch.float64)
        >>> rows = Prediction(log_probs=torch.stack([probs, 1 - probs], -1).log()[:, None],
        ...                   labels=torch.zeros(50, dtype=torch.int64))
        >>> selection = select(Wanted(coverage=Fraction("0.8"), sets=Fraction("0.9")), rows)
        >>> round(selection.threshold.value, 2), selection.measure(rows)["answered"]["share_answered"]
        (0.59, 0.82)
        >>> selection.measure(rows)["sets"]["coverage"]
        0.92
    """
    threshold: CoverageThreshold | AccuracyThreshold | None = None
    if wanted.coverage is not None:
        threshold = threshold_for_coverage(sureness(calibration.log_probs, wanted.by), wanted.coverage)
    elif wanted.accuracy is not None:
        _, correct = confidence_and_correct(calibration.probs, calibration.labels)
        sure = sureness(calibration.log_probs, wanted.by)
        threshold = threshold_for_accuracy(sure, correct, wanted.accuracy, delta=wanted.delta)
    sets = None
    if wanted.sets is not None:
        sets = threshold_for_sets(calibration.log_probs, calibration.labels, wanted.sets, score=wanted.set_score)
    return Selection(threshold=threshold, sets=sets, by=wanted.by)


def calibrate(
    run: RunFolder,
    setting: Setting,
    config: PredictionConfig,
    *,
    reported: Sequence[str] = (),
    file: Task | None = None,
    progress: bool = False,
) -> Calibration:
    """The rows that thresholds are chosen on, predicted as others will be.

    Args:
        run: the run, with what was tuned left in or taken out.
        setting: its parts, loaded for the rows that will be answered.
        config: how they will be predicted.
        reported: the setting's splits that are reported. Rows whose prompts are among theirs are not chosen on.
        file: other labelled rows in place of the validation rows, as the split "calibration".
        progress: show progress bars.

    Raises:
        ValueError: there are no such rows, or the run's task has no classes.
    """
    if setting.readout is None:
        raise ValueError(
            "a threshold needs probabilities of classes, and completions have none. Leave --coverage, "
            "--target_accuracy and --prediction_sets out."
        )
    if file is not None:
        at = dataclasses.replace(setting, task=file)
        prediction = _predicted(at, run, CALIBRATION, config, progress)
        return _usable(prediction, file.rows(CALIBRATION)["prompt"], setting.task, reported, str(file.source), ())
    splits = [split for split in reported if split != VALIDATION]
    if reported and not splits:
        raise ValueError(
            "only validation rows are to be reported, and the threshold is chosen on those. Report another split, or "
            "give other labelled rows to choose it on (--calibration_file)."
        )
    if VALIDATION not in run.facts["task"]["rows"]:
        raise ValueError(
            f"{run.path} has no validation rows to choose a threshold on, and it is never chosen on rows that are "
            "reported. Give labelled rows that are neither (--calibration_file), or train with validation_file or "
            "validation_size."
        )
    stored = _stored(run, setting.config, config)
    used = also_used_for(run)
    if stored is not None and not splits:
        return _usable(stored, (), setting.task, (), VALIDATION, used)
    task = setting.task if VALIDATION in setting.task.splits else load_task(setting.config, setting.tokenizer)
    rows = task.rows(VALIDATION)
    if stored is None or not _same_rows(stored, rows):
        if stored is not None:
            logger.warning("the stored validation predictions are not of the rows that the data hold now: made anew")
        stored = _predicted(dataclasses.replace(setting, task=task), run, VALIDATION, config, progress)
    return _usable(stored, rows["prompt"], setting.task, splits, VALIDATION, used)


def also_used_for(run: RunFolder) -> tuple[str, ...]:
    """What a run's validation rows have decided before, in words.

    Args:
        run: the run; its posterior tells whether it was tuned.
    """
    config, meta = run.config, run.posterior.meta
    steered: Mapping[str, Any] = (meta.diagnostics or {}).get("held_out") or {}
    decided = {
        "λ was steered": bool(steered.get("measurements")) and steered["source"] != "train",
        "training was stopped early": config.early_stopping,
        "a temperature of the logits was fitted": config.temperature_scaling or config.method == "temperature",
        "the prior was chosen": config.method_options.get("prior_choice") == VALIDATION,
        "`varlora tune` chose how to predict": meta.tuned is not None,
    }
    return tuple(words for words, holds in decided.items() if holds)


def _stored(run: RunFolder, settings: RunConfig, config: PredictionConfig) -> Prediction | None:
    """What training has left of the validation rows, if it was made as it would be now."""
    q, mode = run.posterior, config.mode
    file = run.path / "predictions" / f"{VALIDATION}.{mode}.parquet"
    if q.meta.tuned is not None or not file.is_file():
        return None
    stored = run.prediction(VALIDATION, mode)
    draws = number_of_draws(q, config.draws(settings.samples))
    drawn = mode != "samples" or (stored.num_draws == draws and stored.seed == settings.seed)
    return stored if drawn and stored.logit_temperature == q.meta.logit_temperature_of(mode) else None


def _same_rows(stored: Prediction, rows: Any) -> bool:
    labels = [max(label, OUT_OF_SCOPE) for label in stored.labels.tolist()]
    return stored.ids == tuple(map(str, rows["id"])) and labels == list(rows["label"])


def _predicted(setting: Setting, run: RunFolder, split: str, config: PredictionConfig, progress: bool) -> Prediction:
    prediction = predict_split(setting, run.posterior, split, config, progress=progress)
    assert isinstance(prediction, Prediction)
    return prediction


def _usable(
    prediction: Prediction,
    prompts: Sequence[str],
    task: Task,
    reported: Sequence[str],
    source: str,
    used: tuple[str, ...],
) -> Calibration:
    """The labelled rows that are not reported."""
    kept, left_out = unreported(prediction.labels >= 0, prompts, task, reported)
    if not bool(kept.any()):
        too = f"; {left_out} others are reported, too" if left_out else ""
        raise ValueError(
            f"there is no labelled row in {source} to choose a threshold on{too}. Give labelled rows that are not "
            "reported (--calibration_file)."
        )
    if left_out:
        logger.warning("%d rows of %s are reported, too, and no threshold is chosen on them", left_out, source)
    rows = dataclasses.replace(
        prediction,
        log_probs=prediction.log_probs[kept],
        labels=prediction.labels[kept],
        ids=tuple(name for name, keep in zip(prediction.ids, kept.tolist(), strict=True) if keep),
    )
    return Calibration(prediction=rows, source=source, left_out=left_out, also_used_for=used)

"""What to do with a prediction: answer it or not, and with which set of answers. Chosen once, kept in `decision.json`.

`choose_decision` chooses on labelled rows (`varlora.runs.calibration`) what is asked for (`Wanted`). The decision says
from how many rows it is and with which guarantee, and refuses predictions that were made otherwise than those rows':
at the mean, with another number of draws, or by a posterior that has changed since.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from varlora.io.files import json_text, read_json
from varlora.io.folders import atomic_file
from varlora.metrics import (
    AccuracyThreshold,
    CoverageThreshold,
    SetThreshold,
    answered_metrics,
    confidence_and_correct,
    fewest_rows,
    prediction_sets,
    set_metrics,
    sureness,
    threshold_for_accuracy,
    threshold_for_coverage,
    threshold_for_sets,
)
from varlora.metrics.by_group import fit_by_group
from varlora.metrics.conformal import SetScore
from varlora.metrics.selective import Sureness
from varlora.metrics.selective_accuracy import DELTA, fewest_answers
from varlora.posterior.manifest import MANIFEST, library_version, read_manifest, sha256, to_json
from varlora.prediction.prediction import Prediction
from varlora.runs.calibration import Calibration, ChosenOn

FILE = "decision.json"
FORMAT_VERSION = 1
Groups = Sequence[str | None]
"""One name a row; None where a row's group is not known."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Decided:
    """What is decided of N predicted rows.

    Attributes:
        answered: (N,) bool, which rows are answered; None where every row is, since no rule was set.
        reasons: why a row is not answered; None where it is.
        sets: (N, C) bool, which classes are in a row's set; None where no sets were asked for.
    """

    answered: Tensor | None
    reasons: tuple[str | None, ...]
    sets: Tensor | None


@dataclass(frozen=True, kw_only=True)
class PredictedAs:
    """How the rows of a decision were predicted, and so must be those that it is for.

    Attributes:
        mode: as of `Prediction`.
        draws: S.
        logit_temperature: T.
        classes: their names, or empty.
    """

    mode: str
    draws: int
    logit_temperature: float
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, prediction: Prediction) -> PredictedAs:
        """How a prediction was made."""
        return cls(
            mode=prediction.mode,
            draws=prediction.num_draws,
            logit_temperature=prediction.logit_temperature,
            classes=prediction.classes,
        )

    def __str__(self) -> str:
        how = "the mean" if self.mode == "mean" else f"{self.mode}, {self.draws} draw(s)"
        return f"{how}, logits divided by {self.logit_temperature:g}"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which rows are answered, and sets of answers: thresholds, what they promise, and the rows that they are from.

    Attributes:
        chosen_on: the rows that it was chosen on.
        predicted_as: how those were predicted.
        by: what tells how sure an answer is.
        threshold: of the rows that are answered; None if that was not asked for.
        sets: of the classes in a set; None if that was not asked for.
        group_column: the column of the rows that names their group; None: all rows are one.
        group_rows: how many of the rows each group had.
        group_thresholds, group_sets: of the groups that have their own; rows of others go by the common ones above.

    Example:
        >>> probs = torch.linspace(0.5, 0.99, 50, dtype=torch.float64)
        >>> rows = Prediction(log_probs=torch.stack([probs, 1 - probs], -1).log()[:, None],
        ...                   labels=torch.zeros(50, dtype=torch.int64))
        >>> calibration = Calibration(prediction=rows, chosen_on=ChosenOn(source="validation", rows=50))
        >>> decision = choose_decision(Wanted(coverage=Fraction("0.8"), sets=Fraction("0.9")), calibration)
        >>> decided = decision.decide(rows)
        >>> int(decided.answered.sum()), decided.reasons[0], decided.sets[-1].tolist()
        (41, 'confidence 0.5 is below 0.59', [True, False])
    """

    chosen_on: ChosenOn
    predicted_as: PredictedAs
    by: Sureness = "confidence"
    threshold: CoverageThreshold | AccuracyThreshold | None = None
    sets: SetThreshold | None = None
    group_column: str | None = None
    group_rows: Mapping[str, int] = field(default_factory=dict)
    group_thresholds: Mapping[str, CoverageThreshold | AccuracyThreshold] = field(default_factory=dict)
    group_sets: Mapping[str, SetThreshold] = field(default_factory=dict)

    def decide(self, prediction: Prediction, groups: Groups | None = None) -> Decided:
        """What to do with predicted rows.

        Args:
            prediction: of the rows, made as `predicted_as` says.
            groups: the rows' groups, where the decision goes by group. A group that it does not know, and None, goes by
                the common thresholds.

        Raises:
            ValueError: the prediction was made otherwise, or groups are missing or not of these rows.
        """
        self.check(prediction)
        rows = len(prediction.labels)
        named = self._groups(rows, groups)
        answered: Tensor | None = None
        reasons: list[str | None] = [None] * rows
        if self.threshold is not None:
            sure = sureness(prediction.log_probs, self.by)
            own = [self.group_thresholds.get(name or "", self.threshold).value for name in named]
            needed = torch.tensor(own, dtype=torch.float64)
            answered = sure >= needed
            reasons = [
                None if kept else _reason(self.by, value, least)
                for kept, value, least in zip(answered.tolist(), sure.tolist(), own, strict=True)
            ]
        sets = None
        if self.sets is not None:
            sets = prediction_sets(prediction.log_probs, self.sets)
            for name, threshold in self.group_sets.items():
                if bool((at := torch.tensor([one == name for one in named], dtype=torch.bool)).any()):
                    sets[at] = prediction_sets(prediction.log_probs[at], threshold)
        return Decided(answered=answered, reasons=tuple(reasons), sets=sets)

    def measure(self, prediction: Prediction, groups: Groups | None = None) -> dict[str, dict[str, float]]:
        """What comes of it: `answered` and `sets`, of the labelled rows where there are some, else of all.

        Args:
            prediction, groups: as of `decide`.

        Raises:
            ValueError: as `decide`.
        """
        decided = self.decide(prediction, groups)
        known = prediction.labels >= 0
        labelled = bool(known.any())
        rows = known if labelled else torch.ones_like(known)
        labels = prediction.labels[rows] if labelled else None
        metrics = {}
        if decided.answered is not None:
            correct = confidence_and_correct(prediction.probs[rows], labels)[1] if labels is not None else None
            metrics["answered"] = answered_metrics(decided.answered[rows], correct)
        if decided.sets is not None:
            metrics["sets"] = set_metrics(decided.sets[rows], labels)
        return metrics

    def check(self, prediction: Prediction) -> None:
        """Whether a prediction is one that this decision is for.

        Raises:
            ValueError: it was made otherwise than the rows that the decision was chosen on.
        """
        made = PredictedAs.of(prediction)
        if made.classes != self.predicted_as.classes:
            raise ValueError(
                f"the decision is for the classes {_named(self.predicted_as.classes)}, and these rows have "
                f"{_named(made.classes)}. Decide with a decision of the same run."
            )
        if made != self.predicted_as:
            raise ValueError(
                f"the decision was chosen on rows predicted by {self.predicted_as}, and these were by {made}: its "
                "thresholds are of other probabilities. Predict as it was chosen, or choose anew (`varlora decide`)."
            )

    @staticmethod
    def file(folder: str | Path) -> Path:
        """Where a folder's decision is, or would be."""
        return Path(folder) / FILE

    def save(self, folder: str | Path) -> Path:
        """Writes `decision.json` into a folder, in place of one that is there.

        Args:
            folder: the posterior's; the decision is for the posterior that is there now.
        """
        content = {
            "format_version": FORMAT_VERSION,
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "varlora": library_version("varlora"),
            "posterior": _digest(Path(folder)),
            **self.to_dict(),
        }
        file = self.file(folder)
        with atomic_file(file, overwrite=True) as made:
            made.write_text(json_text(content), encoding="utf-8")
        return file

    @classmethod
    def load(cls, folder: str | Path) -> Decision | None:
        """The decision of a folder; None where there is none.

        Raises:
            ValueError: the file is damaged or of a newer version, or the posterior has changed since it was chosen.
        """
        file = cls.file(folder)
        if not file.is_file():
            return None
        instead = "Choose it anew (`varlora decide`), or remove the file."
        content = read_json(file, _File, instead=instead)
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{file} has format version {content['format_version']}; this varlora reads {FORMAT_VERSION}. {instead}"
            )
        if content["posterior"] != _digest(Path(folder)):
            raise ValueError(
                f"{file} was chosen for another posterior than {MANIFEST} holds now (trained or tuned since): its "
                f"thresholds are of other probabilities. {instead}"
            )
        return cls.from_dict(content)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: every field; an infinite threshold is null."""
        held = dataclasses.asdict(self)
        for name in ("threshold", "sets"):
            held[name] = None if getattr(self, name) is None else _as_json(getattr(self, name))
        for name in ("group_thresholds", "group_sets"):
            held[name] = {group: _as_json(value) for group, value in getattr(self, name).items()}
        return held

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decision:
        """What `to_dict` gave, read back.

        Raises:
            ValueError: a field is missing or unknown to what it belongs to.
        """
        try:
            used = values["chosen_on"]
            predicted = values["predicted_as"]
            return cls(
                chosen_on=ChosenOn(**{**used, "also_used_for": tuple(used["also_used_for"])}),
                predicted_as=PredictedAs(**{**predicted, "classes": tuple(predicted["classes"])}),
                by=values["by"],
                threshold=None if values["threshold"] is None else _threshold(values["threshold"]),
                sets=None if values["sets"] is None else _sets(values["sets"]),
                group_column=values["group_column"],
                group_rows=values["group_rows"],
                group_thresholds={name: _threshold(one) for name, one in values["group_thresholds"].items()},
                group_sets={name: _sets(one) for name, one in values["group_sets"].items()},
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"{FILE} is not a decision: {error}. Choose it anew (`varlora decide`).") from error

    def _groups(self, rows: int, groups: Groups | None) -> Groups:
        if self.group_column is None:
            return [None] * rows
        if groups is None:
            raise ValueError(
                f"the decision goes by the rows' {self.group_column!r}: give groups, one name a row (None where it is "
                "not known: the common thresholds)."
            )
        if len(groups) != rows:
            raise ValueError(f"there are {len(groups)} groups for {rows} rows.")
        return groups


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
    prediction = calibration.prediction
    if (group_column is None) != (groups is None):
        raise ValueError("give group_column and groups, or neither.")
    named: Groups = groups if groups is not None else [None] * len(prediction.labels)
    if len(named) != len(prediction.labels):
        raise ValueError(f"there are {len(named)} groups for {len(prediction.labels)} rows.")
    every = torch.ones(len(prediction.labels), dtype=torch.bool)
    threshold, by_group, fewest = None, {}, None
    if wanted.coverage is not None and wanted.accuracy is not None:
        raise ValueError("give a coverage or an accuracy, not both: one threshold cannot be chosen for either.")
    if wanted.coverage is not None or wanted.accuracy is not None:
        sure = sureness(prediction.log_probs, wanted.by)
        _, correct = confidence_and_correct(prediction.probs, prediction.labels)

        def fit_threshold(rows: Tensor) -> CoverageThreshold | AccuracyThreshold:
            if wanted.coverage is not None:
                return threshold_for_coverage(sure[rows], wanted.coverage)
            assert wanted.accuracy is not None
            return threshold_for_accuracy(sure[rows], correct[rows], wanted.accuracy, delta=wanted.delta)

        threshold = fit_threshold(every)
        if wanted.coverage is not None:
            fewest = fewest_rows(1 - wanted.coverage)
        else:
            assert wanted.accuracy is not None
            fewest = fewest_answers(float(wanted.accuracy), wanted.delta)
        by_group = fit_by_group(fit_threshold, named, fewest=fewest)
    sets, sets_by_group = None, {}
    if (probability := wanted.sets) is not None:

        def fit_sets(rows: Tensor) -> SetThreshold:
            return threshold_for_sets(
                prediction.log_probs[rows], prediction.labels[rows], probability, score=wanted.set_score
            )

        sets = fit_sets(every)
        sets_by_group = fit_by_group(fit_sets, named, fewest=fewest_rows(1 - probability))
    return Decision(
        chosen_on=calibration.chosen_on,
        predicted_as=PredictedAs.of(prediction),
        by=wanted.by,
        threshold=threshold,
        sets=sets,
        group_column=group_column,
        group_rows={name: named.count(name) for name in sorted({name for name in named if name is not None})},
        group_thresholds=by_group,
        group_sets=sets_by_group,
    )


class _File(TypedDict):
    """What `decision.json` must hold."""

    format_version: int
    posterior: str | None
    chosen_on: dict[str, Any]
    predicted_as: dict[str, Any]
    by: Literal["confidence", "entropy", "mutual_information"]
    threshold: dict[str, Any] | None
    sets: dict[str, Any] | None
    group_column: str | None
    group_rows: dict[str, int]
    group_thresholds: dict[str, dict[str, Any]]
    group_sets: dict[str, dict[str, Any]]


def _as_json(threshold: CoverageThreshold | AccuracyThreshold | SetThreshold) -> dict[str, Any]:
    held = dataclasses.asdict(threshold)
    return {**held, "value": held["value"] if math.isfinite(held["value"]) else None}


def _threshold(held: Mapping[str, Any]) -> CoverageThreshold | AccuracyThreshold:
    kind: Any = CoverageThreshold if "coverage" in held else AccuracyThreshold
    threshold: CoverageThreshold | AccuracyThreshold = kind(
        **{**held, "value": -math.inf if held["value"] is None else held["value"]}
    )
    return threshold


def _sets(held: Mapping[str, Any]) -> SetThreshold:
    return SetThreshold(**{**held, "value": math.inf if held["value"] is None else held["value"]})


def _digest(folder: Path) -> str | None:
    """What tells a folder's posterior, and how it is tuned, from another; None where there is no manifest."""
    return sha256(to_json(read_manifest(folder))) if (folder / MANIFEST).is_file() else None


def _reason(by: Sureness, value: float, needed: float) -> str:
    if by == "confidence":
        return f"confidence {value:.4g} is below {needed:.4g}"
    return f"{by.replace('_', ' ')} {0.0 - value:.4g} is above {0.0 - needed:.4g}"


def _named(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "") if classes else "(no names)"

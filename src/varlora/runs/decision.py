"""What to do with a prediction: answer it or not, which set, which band. Chosen once, kept in `decision.json`.

`varlora.runs.choose_decision` chooses it on labelled rows (`varlora.runs.calibration`). The decision says from how many
rows it is and with which guarantee, and refuses predictions that were made otherwise than those rows': at the mean,
with another number of draws, or by a posterior that has changed since.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varlora.io.files import json_text, read_json
from varlora.io.folders import atomic_file
from varlora.io.json_dataclass import from_json
from varlora.metrics import (
    SetThreshold,
    answered_metrics,
    confidence_and_correct,
    prediction_sets,
    set_metrics,
    sureness,
)
from varlora.metrics.bands import Band, in_bands
from varlora.metrics.bounded_mean import bounded_mean_interval
from varlora.metrics.costs import CostOfRule, Costs
from varlora.metrics.exchangeability import (
    ALPHA,
    ConformalTestMartingale,
    ExchangeabilityCheck,
    check_exchangeability,
)
from varlora.metrics.recalibration import Recalibration, recalibrated
from varlora.metrics.selective import Sureness
from varlora.metrics.selective_accuracy import DELTA
from varlora.metrics.uncertainty import mean_log_probs
from varlora.metrics.venn_abers import VennAbers
from varlora.posterior.manifest import MANIFEST, library_version, read_manifest, sha256, to_json
from varlora.prediction.prediction import Prediction
from varlora.runs.calibration import ChosenOn
from varlora.runs.decision_file import Threshold, to_fields, to_plain
from varlora.runs.predicted_as import PredictedAs

FILE = "decision.json"
_BESIDE = ("format_version", "made", "varlora", "posterior")
FORMAT_VERSION = 1
Groups = Sequence[str | None]
"""One name a row; None where a row's group is not known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decided:
    """What is decided of N predicted rows.

    Attributes:
        probs: (N, C), the probabilities that it is decided by, averaged over the draws; recalibrated where the
            decision says so, else those of the prediction.
        answered: (N,) bool, which rows are answered; None where every row is, since no rule was set.
        reasons: why a row is not answered; None where it is.
        sets: (N, C) bool, which classes are in a row's set; None where no sets were asked for.
        cheapest: (N,) the class whose answer has the least expected cost, which need not be the likeliest; None where
            nothing is said of costs. It is what `Answer.label` and `predict` give then.
        expected_costs: (N,) of that answer.
        bands: the name of each row's band of confidence; None where there are none.
        intervals: (N, C, 2), p0 and p1 of each class by Venn–Abers, between which its probability is; None otherwise.
    """

    probs: Tensor
    answered: Tensor | None
    reasons: tuple[str | None, ...]
    sets: Tensor | None
    cheapest: Tensor | None = None
    expected_costs: Tensor | None = None
    bands: tuple[str, ...] | None = None
    intervals: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which rows are answered, and sets of answers: thresholds, what they promise, and the rows that they are from.

    Attributes:
        chosen_on: the rows that it was chosen on.
        predicted_as: how those were predicted.
        by: what tells how sure an answer is.
        threshold: of the rows that are answered; None if that was not asked for.
        sets: of the classes in a set; None if that was not asked for.
        costs: of answers and of abstaining; None if nothing was said of them.
        cost_of_rules: what that cost on the rows, beside simpler rules.
        bands: of confidence, the surest first; empty if none were asked for.
        delta: of what is guaranteed of the bands, the chance that it fails.
        recalibration: of the probabilities that all of this goes by; None: as they are.
        recalibration_said: what was tried, and what was taken, in words; empty if nothing was.
        reference: the confidence in the rows, of the probabilities that it is decided by, for `check_exchangeability`;
            rising.
        group_column: the column of the rows that names their group; None: all rows are one.
        group_rows: how many of the rows each group had.
        group_thresholds, group_sets: of the groups that have their own; rows of others go by the common ones above.

    Example:
        >>> from fractions import Fraction
        >>> from varlora.runs.calibration import Calibration
        >>> from varlora.runs.choose_decision import Wanted, choose_decision
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
    threshold: Threshold | None = None
    sets: SetThreshold | None = None
    costs: Costs | None = None
    cost_of_rules: tuple[CostOfRule, ...] = ()
    bands: tuple[Band, ...] = ()
    delta: float = DELTA
    recalibration: Recalibration | None = None
    recalibration_said: str = ""
    reference: tuple[float, ...] = ()
    group_column: str | None = None
    group_rows: Mapping[str, int] = field(default_factory=dict)
    group_thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    group_sets: Mapping[str, SetThreshold] = field(default_factory=dict)

    @property
    def promises(self) -> bool:
        """Whether something is guaranteed of new rows; costs and bands of given cuts are only measured."""
        guaranteed = any(band.wanted is not None for band in self.bands)
        return self.threshold is not None or self.sets is not None or guaranteed

    def check_loaded_as(self, now: str | None) -> None:
        """Refuses frozen weights that are loaded otherwise than those which predicted the rows it was chosen on.

        Args:
            now: how they are loaded (`varlora.runs.calibration.loaded_as`); None, which is not known, is taken.

        Raises:
            ValueError: they are.
        """
        if None not in (now, self.chosen_on.loaded_as) and now != self.chosen_on.loaded_as:
            raise ValueError(
                f"the decision was chosen with the frozen weights in {self.chosen_on.loaded_as}, and they are in {now} "
                "here: its thresholds are of other probabilities. Load them so (--dtype, --quantization), "
                "or choose anew (`varlora decide`)."
            )

    def decide(self, prediction: Prediction, groups: Groups | None = None) -> Decided:
        """What to do with predicted rows.

        Args:
            prediction: of the rows, made as `predicted_as` says.
            groups: the rows' groups, where the decision goes by group. A group that it does not know, and None, goes by
                the common thresholds.

        Raises:
            ValueError: the prediction was made otherwise, or groups are missing or not of these rows.
        """
        if prediction.draws_taken is not None:
            self.predicted_as.refuse_until_sure()
        self.predicted_as.check(PredictedAs.of(prediction))
        named = self._groups(len(prediction.labels), groups)
        log_probs = recalibrated(self.recalibration, prediction.log_probs, named)
        probs = mean_log_probs(log_probs).exp()
        answered, reasons = self._answered(log_probs, probs, named)
        by_cost = self.costs.cheapest(probs) if self.costs is not None else (None, None)
        drawn_from = self.recalibration
        return Decided(
            probs=probs,
            answered=answered,
            reasons=reasons,
            sets=self._sets(log_probs, named),
            cheapest=by_cost[0],
            expected_costs=by_cost[1],
            bands=tuple(in_bands(sureness(log_probs, self.by), self.bands)) if self.bands else None,
            intervals=drawn_from.intervals(prediction.probs) if isinstance(drawn_from, VennAbers) else None,
        )

    def measure(self, prediction: Prediction, groups: Groups | None = None) -> dict[str, dict[str, float]]:
        """What comes of it: `answered`, `sets` and `costs`, of the labelled rows where there are some, else of all.

        A row's mean cost, with an interval that holds that of new rows in 95 % of cases, needs labels.

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
        metrics: dict[str, dict[str, float]] = {}
        if decided.answered is not None:
            correct = None
            if labels is not None and decided.cheapest is not None:
                correct = decided.cheapest[rows] == labels
            elif labels is not None:
                correct = confidence_and_correct(decided.probs[rows], labels)[1]
            metrics["answered"] = answered_metrics(decided.answered[rows], correct)
        if labels is not None and self.costs is not None and decided.cheapest is not None:
            kept = None if decided.answered is None else decided.answered[rows]
            incurred = self.costs.incurred(decided.cheapest[rows], labels, kept)
            least, most = self.costs.bounds(answers=True, abstains=True)
            low, high = bounded_mean_interval(incurred, low=least, high=most)
            metrics["costs"] = {"mean": float(incurred.mean()), "low": low, "high": high}
        if decided.sets is not None:
            metrics["sets"] = set_metrics(decided.sets[rows], labels)
        return metrics

    def check_exchangeability(
        self, prediction: Prediction, groups: Groups | None = None, *, alpha: float = ALPHA, seed: int = 0
    ) -> ExchangeabilityCheck:
        """Whether predicted rows look as if they were drawn as the rows that this was chosen on.

        Args:
            prediction, groups: as of `decide`; the rows in their order.
            alpha: the chance of a false alarm.
            seed: breaks ties.

        Raises:
            ValueError: as `decide`.
        """
        confidence = self.decide(prediction, groups).probs.amax(1)
        return check_exchangeability(self.reference, confidence, alpha=alpha, seed=seed)

    def martingale(self, *, alpha: float = ALPHA, seed: int = 0) -> ConformalTestMartingale:
        """The same for rows that come one by one, of which it takes the confidence (the highest of `Decided.probs`).

        Args:
            alpha: the chance of a false alarm, however many rows come.
            seed: breaks ties.
        """
        return ConformalTestMartingale(self.reference, alpha=alpha, seed=seed)

    @staticmethod
    def file(folder: str | Path) -> Path:
        """Where a folder's decision is, or would be."""
        return Path(folder) / FILE

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes `decision.json` into a folder.

        Args:
            folder: the posterior's; the decision is for the posterior that is there now.
            overwrite: replace the decision that is there.

        Raises:
            ValueError: there is one, and it may not be replaced.
        """
        self.check_can_be_kept(folder, overwrite=overwrite)
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
    def check_can_be_kept(cls, folder: str | Path, *, overwrite: bool = False) -> None:
        """Refuses a folder that holds a decision which may not be replaced; call it before anything is predicted.

        Raises:
            ValueError: it does.
        """
        if not overwrite and cls.file(folder).exists():
            raise ValueError(
                f"{cls.file(folder)} holds a decision: `varlora decide {folder}` shows it. Replace it with "
                "--overwrite, or take it back with --reset."
            )

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
        content = read_json(file, dict[str, Any], instead=instead)
        if (version := content.get("format_version")) != FORMAT_VERSION:
            raise ValueError(f"{file} has format version {version!r}; this varlora reads {FORMAT_VERSION}. {instead}")
        if content.get("posterior") != _digest(Path(folder)):
            raise ValueError(
                f"{file} was chosen for another posterior than {MANIFEST} holds now (trained or tuned since): its "
                f"thresholds are of other probabilities. {instead}"
            )
        try:
            return cls.from_dict({name: value for name, value in content.items() if name not in _BESIDE})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: every field; an infinite threshold is null."""
        return to_plain(dataclasses.asdict(self), self.recalibration)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decision:
        """What `to_dict` gave, read back.

        Raises:
            ValueError: a field is missing, unknown or of another form.
        """
        try:
            return from_json(to_fields(values), cls)
        except ValueError as error:
            raise ValueError(f"this is no decision: {error}. Choose it anew (`varlora decide`).") from error

    def _answered(
        self, log_probs: Tensor, probs: Tensor, groups: Groups
    ) -> tuple[Tensor | None, tuple[str | None, ...]]:
        """Which rows are answered, and why the others are not."""
        rows = len(probs)
        if self.costs is not None:
            kept = self.costs.answered(probs)
            pairs = zip(self.costs.cheapest(probs)[1].tolist(), self.costs.abstaining(probs).tolist(), strict=True)
            dear = [f"an answer is expected to cost {one:.4g}, abstaining {other:.4g}" for one, other in pairs]
            return kept, tuple(None if of else why for of, why in zip(kept.tolist(), dear, strict=True))
        if self.threshold is None:
            return None, (None,) * rows
        sure = sureness(log_probs, self.by)
        least = [self.group_thresholds.get(name or "", self.threshold).value for name in groups]
        kept = sure >= torch.tensor(least, dtype=torch.float64)
        return kept, tuple(
            None if of else _reason(self.by, value, needed)
            for of, value, needed in zip(kept.tolist(), sure.tolist(), least, strict=True)
        )

    def _sets(self, log_probs: Tensor, groups: Groups) -> Tensor | None:
        """Which classes are in each row's set."""
        if self.sets is None:
            return None
        sets = prediction_sets(log_probs, self.sets)
        for name, threshold in self.group_sets.items():
            if bool((at := torch.tensor([one == name for one in groups], dtype=torch.bool)).any()):
                sets[at] = prediction_sets(log_probs[at], threshold)
        return sets

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


def _digest(folder: Path) -> str | None:
    """What tells a folder's posterior, and how it is tuned, from another; None where there is no manifest."""
    return sha256(to_json(read_manifest(folder))) if (folder / MANIFEST).is_file() else None


def _reason(by: Sureness, value: float, needed: float) -> str:
    if by == "confidence":
        return f"confidence {value:.4g} is below {needed:.4g}"
    return f"{by.replace('_', ' ')} {0.0 - value:.4g} is above {0.0 - needed:.4g}"

"""What trained models answered: one row per method, seed and split, and a method's rows as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from varlora.metrics import (
    confidence_and_correct,
    expected_calibration_error,
    maximum_calibration_error,
    mean_log_probs,
)
from varlora.metrics.scoring import brier_scores, log_losses


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """The predictions of one trained model, under one method's name, on one split.

    Args:
        method: As the report shall call it: "AdamW", "IVON, mean", "IVON, 10 samples".
        seed: Of the training run.
        split: "test", "validation", or the name of another data set.
        log_probs: (N, S, C) log-probabilities of S posterior samples, or (N, C).
        labels: (N,) the right classes.
        ids: The N examples' names, or empty. Rows are of the same examples if names and labels are the same.
        train_seconds: Wall-clock time of the training; None if not known.
        predict_seconds: Wall-clock time of the prediction; None if not known.
        logit_temperature: T, by which the logits were divided.

    Raises:
        ValueError: The shapes do not fit each other, or the name is empty.
    """

    method: str
    seed: int
    split: str
    log_probs: Tensor
    labels: Tensor
    ids: tuple[str, ...] = ()
    train_seconds: float | None = None
    predict_seconds: float | None = None
    logit_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.method.strip():
            raise ValueError("a row's method has no name; give one, e.g. 'AdamW'")
        shape, labels = tuple(self.log_probs.shape), tuple(self.labels.shape)
        if len(shape) not in (2, 3) or labels != shape[:1]:
            raise ValueError(
                f"{self.method!r}, seed {self.seed}: log_probs {shape} and labels {labels} do not fit; "
                "give (N, S, C) or (N, C), and (N,)"
            )
        if self.ids and len(self.ids) != len(self.labels):
            raise ValueError(f"{self.method!r}, seed {self.seed}: {len(self.ids)} ids for {len(self.labels)} examples")

    def same_examples(self, other: Row) -> bool:
        """Whether another row is of the same examples in the same order, as far as labels and names tell."""
        named = bool(self.ids and other.ids)
        return torch.equal(self.labels, other.labels) and (not named or self.ids == other.ids)

    @cached_property
    def mean_log_probs(self) -> Tensor:
        """(N, C): the log of the probabilities' average over samples."""
        return mean_log_probs(self.log_probs if self.log_probs.dim() == 3 else self.log_probs.unsqueeze(1))

    @cached_property
    def confidence_and_correct(self) -> tuple[Tensor, Tensor]:
        """(N,) the probability of each answer, and (N,) whether it was right."""
        return confidence_and_correct(self.mean_log_probs.exp(), self.labels)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What the metrics need of one method's K runs, on the same N examples or on N of each run's own: (K, N) each."""

    confidence_KN: Tensor
    correct_KN: Tensor
    losses_KN: Tensor
    brier_KN: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Runs:
        """From one row per seed."""
        return cls(
            confidence_KN=torch.stack([row.confidence_and_correct[0] for row in rows]),
            correct_KN=torch.stack([row.confidence_and_correct[1] for row in rows]),
            losses_KN=torch.stack([log_losses(row.mean_log_probs, row.labels) for row in rows]),
            brier_KN=torch.stack([brier_scores(row.mean_log_probs.exp(), row.labels) for row in rows]),
        )

    def by_run(self, indices: Tensor, metrics: Sequence[str], *, own: bool = False) -> dict[str, Tensor]:
        """The metrics of each run, (K, ...).

        Args:
            indices: of the examples, (..., N); if each run has its own, (K, ..., N).
            metrics: which.
            own: whether each run has its own examples.
        """

        def at(values_KN: Tensor) -> Tensor:
            if not own:
                return values_KN[:, indices]
            return torch.stack([values[chosen] for values, chosen in zip(values_KN, indices, strict=True)])

        return {metric: self._metric(metric, at) for metric in metrics}

    def _metric(self, metric: str, at: Callable[[Tensor], Tensor]) -> Tensor:
        if metric == "accuracy":
            return at(self.correct_KN).double().mean(-1)
        if metric == "nll":
            return at(self.losses_KN).mean(-1)
        if metric == "brier":
            return at(self.brier_KN).mean(-1)
        name, _, bins = metric.partition("_")
        error = {"ece": expected_calibration_error, "mce": maximum_calibration_error}[name]
        return error(at(self.confidence_KN), at(self.correct_KN), bins=int(bins))

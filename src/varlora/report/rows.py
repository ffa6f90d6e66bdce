"""What trained models answered: one row per method, seed and split, and a method's rows as one batch."""

from __future__ import annotations

from collections.abc import Sequence
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
        train_seconds: Wall-clock time of the training; None if not known.
        predict_seconds: Wall-clock time of the prediction; None if not known.

    Raises:
        ValueError: The shapes do not fit each other, or the name is empty.
    """

    method: str
    seed: int
    split: str
    log_probs: Tensor
    labels: Tensor
    train_seconds: float | None = None
    predict_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.method.strip():
            raise ValueError("a row's method has no name; give one, e.g. 'AdamW'")
        shape, labels = tuple(self.log_probs.shape), tuple(self.labels.shape)
        if len(shape) not in (2, 3) or labels != shape[:1]:
            raise ValueError(
                f"{self.method!r}, seed {self.seed}: log_probs {shape} and labels {labels} do not fit; "
                "give (N, S, C) or (N, C), and (N,)"
            )

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
    """What the metrics need of one method's K runs on the same N examples, (K, N) each."""

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

    def means(self, indices: Tensor, metrics: Sequence[str]) -> dict[str, Tensor]:
        """The metrics' means over the runs, on the examples at `indices` (..., N)."""
        return {metric: self._metric(metric, indices).mean(0) for metric in metrics}

    def _metric(self, metric: str, indices: Tensor) -> Tensor:
        if metric == "accuracy":
            return self.correct_KN[:, indices].double().mean(-1)
        if metric == "nll":
            return self.losses_KN[:, indices].mean(-1)
        if metric == "brier":
            return self.brier_KN[:, indices].mean(-1)
        name, _, bins = metric.partition("_")
        error = {"ece": expected_calibration_error, "mce": maximum_calibration_error}[name]
        return error(self.confidence_KN[:, indices], self.correct_KN[:, indices], bins=int(bins))

"""What trained models answered: one row per method, seed and split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from varlora.metrics import ClassRows


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
    def examples(self) -> ClassRows:
        """What metrics are computed from."""
        return ClassRows(self.log_probs, self.labels)

"""How far a training went, from its log: what advice to train longer or shorter has to fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FALL = 0.05
"""Share of the loss by which its last third must lie below the third before to be falling."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How far a training went.

    Attributes:
        epochs: passes over the training rows; None if the log does not say.
        falling: whether the loss still fell when it ended, that of held-out rows where it was logged; None if too
            little was logged.
    """

    epochs: float | None = None
    falling: bool | None = None

    @property
    def may_be_too_long(self) -> bool:
        """Whether fewer steps may be advised: every row was seen, and the loss had stopped falling.

        Example:
            >>> [Course(epochs=e, falling=f).may_be_too_long for e, f in ((3.0, False), (3.0, True), (0.8, False))]
            [True, False, False]
        """
        return self.epochs is not None and self.epochs > 1 and self.falling is False


def course_of(log: Sequence[Mapping[str, Any]]) -> Course:
    """The course of a training.

    Args:
        log: the trainer's log, one entry per logged step.

    Example:
        >>> losses = [1.0, 0.8, 0.6, 0.5, 0.4, 0.3]
        >>> course_of([{"epoch": 0.1 * (k + 1), "loss": loss} for k, loss in enumerate(losses)])
        Course(epochs=0.6, falling=True)
    """
    epochs = [entry["epoch"] for entry in log if entry.get("epoch") is not None]
    held_out = _finite(log, "eval_loss")
    losses = held_out if len(held_out) > 1 else _finite(log, "loss")
    return Course(epochs=round(max(epochs), 4) if epochs else None, falling=_falling(losses))


def _finite(log: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [entry[name] for entry in log if entry.get(name) is not None and math.isfinite(entry[name])]


def _falling(losses: Sequence[float]) -> bool | None:
    third = max(1, len(losses) // 3)
    if len(losses) < 2:
        return None
    last, before = losses[-third:], losses[-2 * third : -third]
    former = math.fsum(before) / third
    return math.fsum(last) / third < former - FALL * abs(former)

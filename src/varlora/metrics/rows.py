"""What metrics are computed from: N rows that are judged together, and any resample of them.

    whole = ClassRows(predictions, labels)      its tensors are (N,) or (N, *)
    whole.at(indices)                           the rows at indices (..., N): its tensors are (..., N) or (..., N, *)

What no metric asks for is never worked out. A `per_row` value is worked out once, of all rows, and picked by index for
a resample; a plain property is worked out anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from varlora.metrics.inputs import as_labels, as_predictions
from varlora.metrics.metric import Kind
from varlora.metrics.ranking import risk_coverage
from varlora.metrics.scoring import confidence_and_correct
from varlora.metrics.uncertainty import mean_log_probs, mutual_information, predictive_entropy

T = TypeVar("T", Tensor, "Tensor | None")


class per_row(Generic[T]):
    """A value of each row, (N, *), or None where there is none: worked out once, and picked by index for a resample."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute: Callable[[Any], T] = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, rows: Any, owner: type) -> T:
        if rows is None:
            return self  # type: ignore[return-value]  # the class is asked, as by help()
        if self.name not in rows.__dict__:
            whole = self.compute(rows) if rows.taken_of is None else getattr(rows.taken_of, self.name)
            rows.__dict__[self.name] = whole if whole is None or rows.taken_of is None else whole[rows.indices]
        value: T = rows.__dict__[self.name]
        return value


def given() -> per_row[Any]:
    """A value of each row as it was given, under its own name."""
    value: per_row[Any] = per_row(lambda rows: rows.given[value.name])
    return value


class Rows:
    """N rows of one kind, from what was given for them."""

    kind: ClassVar[Kind]

    def __init__(self, number: int, *, width: int = 1, **given: Any) -> None:
        """Keeps what was given.

        Args:
            number: N.
            width: how many numbers of a row metrics pick at once, for the memory that a bootstrap may use.
            **given: tensors (N, *), and whatever else the rows' values are worked out from.
        """
        self.number, self.width, self.given = number, width, given
        self.taken_of: Self | None = None
        self.indices = torch.empty(0)

    def at(self, indices: Tensor) -> Self:
        """The rows at indices (..., N)."""
        taken = object.__new__(type(self))
        Rows.__init__(taken, self.number, width=self.width, **self.given)
        taken.taken_of, taken.indices = self, indices
        return taken


class ClassRows(Rows):
    """Rows whose answer is one of C classes, and how probable a model finds each.

    Args:
        predictions: as of `varlora.metrics.evaluate`; the draws of (N, S, C) are averaged as probabilities.
        labels: (N,) class indices.

    Attributes:
        labels: (..., N) right classes.
        probs: (..., N, C) probabilities, averaged over draws.
        log_probs: (..., N, C) their logarithms.
        draws: (..., N, S, C) log-probabilities of each draw; None where there are no draws.

    Raises:
        ValueError: as `varlora.metrics.evaluate`.

    Example:
        >>> rows = ClassRows(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
        >>> rows.correct.tolist(), rows.at(torch.tensor([1, 1])).correct.tolist()
        ([True, False], [False, False])
    """

    kind = "classes"

    def __init__(self, predictions: Tensor, labels: Tensor) -> None:
        values, is_log = as_predictions(predictions)
        log_probs = values if is_log else values.log()
        draws = log_probs if log_probs.dim() == 3 else None
        if draws is not None:
            log_probs = mean_log_probs(draws)
        # exp(log(0.6)) is not 0.6, and would fall into another bin.
        probs = log_probs.exp() if is_log else values
        labels = as_labels(labels, probs)
        super().__init__(
            len(labels), width=probs.shape[-1], log_probs=log_probs, probs=probs, labels=labels, draws=draws
        )

    labels: per_row[Tensor] = given()
    probs: per_row[Tensor] = given()
    log_probs: per_row[Tensor] = given()
    draws: per_row[Tensor | None] = given()

    @per_row
    def confidence(self) -> Tensor:
        """(..., N) probability of the answer, the likeliest class."""
        return confidence_and_correct(self.probs, self.labels)[0]

    @per_row
    def correct(self) -> Tensor:
        """(..., N) whether the answer is right."""
        return confidence_and_correct(self.probs, self.labels)[1]

    @cached_property
    def risk(self) -> Tensor:
        """(..., N) error rate among the k = 1..N surest rows."""
        return risk_coverage(self.confidence, self.correct)[1]


class CompletionRows(Rows):
    """Completions that were given, and how likely a model finds them.

    Args:
        log_likelihoods: (N, S) float64, nats, of each completion under each draw.
        num_tokens: (N,) tokens of each; (..., N) as an attribute.
    """

    kind = "completions"
    num_tokens: per_row[Tensor] = given()

    def __init__(self, log_likelihoods: Tensor, num_tokens: Tensor) -> None:
        super().__init__(len(num_tokens), log_likelihoods=log_likelihoods, num_tokens=num_tokens)

    @per_row
    def log_likelihood(self) -> Tensor:
        """(..., N) log of the average over draws of a completion's probability."""
        of_draws: Tensor = self.given["log_likelihoods"]
        return torch.logsumexp(of_draws, dim=1) - math.log(of_draws.shape[1])


class ScopeRows(Rows):
    """Rows in scope, and rows that belong to no class, which a model's uncertainty is to tell from them.

    Args:
        inside: (N, S, C) log-probabilities of S draws for the rows in scope.
        outside: (M, S, C) for those that belong to no class. As an attribute: (..., N + M) whether a row is one.
    """

    kind = "out_of_scope"
    outside: per_row[Tensor] = given()

    def __init__(self, inside: Tensor, outside: Tensor) -> None:
        both = torch.cat([inside, outside])
        super().__init__(len(both), draws=both, outside=torch.arange(len(both)) >= len(inside))

    @per_row
    def entropy(self) -> Tensor:
        """(..., N + M) entropy of the averaged probabilities."""
        return predictive_entropy(self.given["draws"])

    @per_row
    def mutual_information(self) -> Tensor | None:
        """(..., N + M) how far the draws disagree; None where there is one."""
        draws: Tensor = self.given["draws"]
        return mutual_information(draws) if draws.shape[1] > 1 else None

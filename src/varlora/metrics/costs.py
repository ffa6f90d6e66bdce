"""What answers cost: the answer of least expected cost, and abstaining where that is cheaper.

    R(a | x)   = Σ_y p(y | x) · cost[y][a]      answering a
    R(∅ | x)   = Σ_y p(y | x) · abstain[y]      leaving the row to somebody else
    a*(x)      = argmin_a R(a | x) over the choices that the row offers; the likeliest of equally cheap ones
    answered   = R(a*(x) | x) ≤ R(∅ | x)

Nothing is chosen on rows, so that what validation rows measure of it is a fair estimate. How cheap it is depends on
the probabilities: it is the cheapest rule where they are calibrated, and the expected and the measured cost agree
there. With one cost for every mistake, a* is the likeliest answer, and a row is answered if it is right with a
probability of at least 1 − abstain / wrong (Chow's rule).

Source: Chow 1970, "On optimum recognition error and reject tradeoff"; Elkan 2001, "The foundations of cost-sensitive
learning".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from varlora.io.nearest import nearest
from varlora.metrics.bounded_mean import bounded_mean_interval
from varlora.metrics.inputs import as_labels

OTHERS = "*"
"""In a mapping of classes: every class that is not named."""
Cost = float | Mapping[str, float]
"""One number, or one for each class."""
_EQUAL = 1e-12
"""Expected costs that differ by less, as a share of the dearest, are equal: they differ by rounding."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What answers cost, and what abstaining does.

    Attributes:
        wrong: (C, C), the cost of answering the second class where the first is right; what a right answer costs is on
            the diagonal.
        abstain: (C,), the cost of not answering a row of each class; None: every row is answered.

    Raises:
        ValueError: a cost is negative, NaN or infinite, or their numbers do not fit.
    """

    wrong: tuple[tuple[float, ...], ...]
    abstain: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        size = len(self.wrong)
        if not size or any(len(row) != size for row in self.wrong):
            raise ValueError(f"the costs of answers are no square: {[len(row) for row in self.wrong]} in {size} rows.")
        if self.abstain is not None and len(self.abstain) != size:
            raise ValueError(f"there are {len(self.abstain)} costs of abstaining for {size} classes.")
        for value in (*(cost for row in self.wrong for cost in row), *(self.abstain or ())):
            if not 0 <= value < math.inf:
                raise ValueError(f"a cost is {value!r}; give finite numbers, at least 0.")

    @classmethod
    def of(
        cls,
        classes: Sequence[str],
        *,
        wrong: Cost | Mapping[str, Cost] | Sequence[Sequence[float]],
        abstain: Cost | None = None,
    ) -> Self:
        """Costs as one says them.

        Args:
            classes: the classes' names, in order.
            wrong: of a wrong answer: one number; by the right class; by the right class and, within, by the answer; or
                the whole matrix, a row for each right class. A right answer costs nothing unless a matrix says so.
                The class "*" is every one that is not named.
            abstain: of not answering: one number, or by the right class. None: every row is answered.

        Raises:
            ValueError: a class is unknown or missing, or a cost is none.

        Example:
            >>> Costs.of(("ham", "spam"), wrong={"ham": 10, "spam": 1}, abstain=0.5).wrong
            ((0.0, 10.0), (1.0, 0.0))
            >>> Costs.of(("a", "b", "c"), wrong={"a": {"b": 2, "*": 1}, "*": 3}).wrong
            ((0.0, 2.0, 1.0), (3.0, 0.0, 3.0), (3.0, 3.0, 0.0))
        """
        if not isinstance(wrong, (int, float, Mapping)):
            matrix = tuple(tuple(map(_number, row)) for row in wrong)
            if len(matrix) != len(classes):
                raise ValueError(f"there are costs for {len(matrix)} classes, and {len(classes)} classes.")
        else:
            by_class = _by_class(wrong, classes, "the cost of a wrong answer")
            matrix = tuple(
                _numbers(by_class[name], classes, f"the cost of an answer where {name!r} is right", right=name)
                for name in classes
            )
        return cls(
            wrong=matrix, abstain=None if abstain is None else _numbers(abstain, classes, "the cost of abstaining")
        )

    def expected(self, probs: Tensor) -> Tensor:
        """R(a | x), (N, C): the expected cost of each answer; +∞ for a choice that is not offered (probability 0).

        Args:
            probs: (N, C), averaged over draws.

        Raises:
            ValueError: there are as many costs for another number of classes.
        """
        if probs.dim() != 2 or probs.shape[1] != len(self.wrong):
            raise ValueError(f"there are costs for {len(self.wrong)} classes, and probabilities {tuple(probs.shape)}.")
        values = probs.double() @ torch.tensor(self.wrong, dtype=torch.float64)
        return values.masked_fill(probs == 0, math.inf)

    def cheapest(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """The answer of least expected cost (N,), the likeliest of equally cheap ones, and that cost (N,).

        Example:
            >>> costs = Costs.of(("ham", "spam"), wrong={"ham": 10, "spam": 1})
            >>> costs.cheapest(torch.tensor([[0.25, 0.75]]))               # spam would cost 2.5 in expectation
            (tensor([0]), tensor([0.7500], dtype=torch.float64))
        """
        expected = self.expected(probs)
        least = expected.amin(1, keepdim=True)
        equal = expected <= least + _EQUAL * max(1e-300, max(map(max, self.wrong)))
        answer = torch.where(equal, probs.double(), -1.0).argmax(1)
        return answer, least.squeeze(1)

    def abstaining(self, probs: Tensor) -> Tensor:
        """R(∅ | x), (N,): the expected cost of not answering; +∞ where every row is answered."""
        if self.abstain is None:
            return torch.full((len(probs),), math.inf, dtype=torch.float64)
        return probs.double() @ torch.tensor(self.abstain, dtype=torch.float64)

    def answered(self, probs: Tensor) -> Tensor:
        """Which rows are answered (N,) bool: those whose cheapest answer is no dearer than abstaining."""
        dearest = max(*map(max, self.wrong), *(self.abstain or (0.0,)))
        return self.cheapest(probs)[1] <= self.abstaining(probs) + _EQUAL * dearest

    def incurred(self, answers: Tensor, labels: Tensor, answered: Tensor | None = None) -> Tensor:
        """What rows have cost (N,), whose labels are known.

        Args:
            answers: (N,) class indices.
            labels: (N,) class indices.
            answered: (N,) bool; None: all are.
        """
        cost = torch.tensor(self.wrong, dtype=torch.float64)[labels, answers]
        if answered is None or bool(answered.all()):
            return cost
        if self.abstain is None:
            raise ValueError("a row is not answered, and nothing says what that costs.")
        return torch.where(answered, cost, torch.tensor(self.abstain, dtype=torch.float64)[labels])

    def bounds(self, *, answers: bool, abstains: bool) -> tuple[float, float]:
        """The least and the most that a row can cost under a rule that answers rows, abstains, or does either."""
        every = [cost for row in self.wrong for cost in row] if answers else []
        every += self.abstain if abstains and self.abstain is not None else ()
        return min(every), max(every)


@dataclass(frozen=True, kw_only=True)
class CostOfRule:
    """What a rule costs a row, on average.

    Attributes:
        rule: in words.
        share_answered: of the rows.
        expected: under the probabilities.
        measured: on rows with labels.
        low: of new rows it is at least this, with 95 % probability over the choice of those rows.
        high: and at most this.
    """

    rule: str
    share_answered: float
    expected: float
    measured: float
    low: float
    high: float


def cost_of_rules(costs: Costs, probs: Tensor, labels: Tensor) -> tuple[CostOfRule, ...]:
    """What the cheapest rule costs on labelled rows, beside simpler ones.

    Args:
        costs: of answers and of abstaining.
        probs: (N, C), averaged over draws.
        labels: (N,) class indices.

    Returns:
        Of the cheapest answer or abstaining; always the cheapest answer; always the likeliest; never an answer. Where
        nothing is said of abstaining, the first and the last are left out.

    Raises:
        ValueError: the arguments do not fit.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.05, 0.95]])
        >>> costs = Costs.of(("no", "yes"), wrong=5, abstain=1)
        >>> for of_rule in cost_of_rules(costs, probs, torch.tensor([0, 1, 1, 1])):
        ...     print(of_rule.rule, of_rule.share_answered, round(of_rule.expected, 4), of_rule.measured)
        least expected cost 0.5 0.6875 0.5
        always the cheapest answer 1.0 1.1875 1.25
        always the likeliest answer 1.0 1.1875 1.25
        never an answer 0.0 1.0 1.0
    """
    labels = as_labels(labels, probs)
    answers, expected = costs.cheapest(probs)
    likeliest = probs.argmax(1)
    of_likeliest = costs.expected(probs).gather(1, likeliest[:, None]).squeeze(1)
    every, none = torch.ones(len(labels), dtype=torch.bool), torch.zeros(len(labels), dtype=torch.bool)
    rules = [
        ("always the cheapest answer", answers, every, expected),
        ("always the likeliest answer", likeliest, every, of_likeliest),
    ]
    if costs.abstain is not None:
        kept, abstaining = costs.answered(probs), costs.abstaining(probs)
        rules.insert(0, ("least expected cost", answers, kept, torch.where(kept, expected, abstaining)))
        rules.append(("never an answer", answers, none, abstaining))
    measured = []
    for rule, chosen, answered, believed in rules:
        incurred = costs.incurred(chosen, labels, answered)
        least, most = costs.bounds(answers=answered is not none, abstains=answered is not every)
        low, high = bounded_mean_interval(incurred, low=least, high=most)
        share, mean = float(answered.double().mean()), float(incurred.mean())
        measured.append(
            CostOfRule(
                rule=rule, share_answered=share, expected=float(believed.mean()), measured=mean, low=low, high=high
            )
        )
    return tuple(measured)


def _by_class(given: Cost | Mapping[str, Cost], classes: Sequence[str], what: str) -> dict[str, Cost]:
    """One for each class."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(classes, given)
    if unknown := [name for name in given if name not in classes and name != OTHERS]:
        raise ValueError(f"{what}: there is no class {unknown[0]!r}; {nearest(str(unknown[0]), classes)}")
    if missing := [name for name in classes if name not in given and OTHERS not in given]:
        raise ValueError(
            f"{what}: {', '.join(missing[:12])} missing; give one for each class, or one for all others ({OTHERS!r})."
        )
    return {name: given[name] if name in given else given[OTHERS] for name in classes}


def _numbers(given: Cost, classes: Sequence[str], what: str, right: str | None = None) -> tuple[float, ...]:
    """One for each class, in order; 0 for the right class, of which there need be none."""
    if isinstance(given, Mapping) and right is not None:
        if given.get(right, 0) != 0:
            raise ValueError(f"{what}: a right answer costs nothing, unless the costs are given as a matrix.")
        given = {**given, right: 0.0}
    by_class = {name: _number(value) for name, value in _by_class(given, classes, what).items()}
    return tuple(0.0 if name == right else cost for name, cost in by_class.items())


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"a cost is {value!r}; give finite numbers, at least 0.")
    return float(value)

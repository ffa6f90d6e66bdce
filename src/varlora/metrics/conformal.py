"""Split-conformal thresholds: what n rows say of the next one, for any model and any n.

    s_1 … s_n    scores of n rows that the model was not trained on; higher fits worse
    k = ⌈(n + 1)(1 − α)⌉,   q = the k-th smallest score; +∞ if k > n

If the n rows and a new one are exchangeable (drawn alike, and nothing fitted to the n), then P(s_new ≤ q) ≥ 1 − α, and
≤ 1 − α + 1/(n + 1) without ties. The probability is over the n rows as well: given them, the share of new rows with
s ≤ q is a draw of Beta(k, n + 1 − k). k is counted in rationals, because (n + 1)(1 − α) in floating point can be off by
one rank where it should be whole (n = 149, α = .18: 124 in place of 123).

A prediction set holds every class whose score is within q:

    LAC    s(x, y) = 1 − p(y | x)
    APS    s(x, y) = Σ_y' p(y' | x) over the y' with p(y' | x) ≥ p(y | x)      (not randomised)

Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Sadinle, Lei and Wasserman,
arXiv:1609.00451 (LAC); Romano, Sesia and Candès, arXiv:2006.02544 (APS).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from scipy.special import betaincinv
from torch import Tensor

from varlora.metrics.inputs import as_float64, as_labels, as_predictions
from varlora.metrics.uncertainty import mean_log_probs

Exact = str | float | Fraction
"""A number as it is written: "0.1", 0.1 and Fraction(1, 10) are all one tenth."""
SetScore = Literal["lac", "aps"]
LEVEL = 0.95
"""Of what is said about the share that these very rows will give."""


def as_fraction(value: Exact, *, name: str = "value") -> Fraction:
    """The exact number that was written; of a float, that of its shortest decimal.

    Args:
        value: a decimal as text, a float, a whole number or a fraction.
        name: what it is, for the error message.

    Raises:
        ValueError: it is no finite number.

    Example:
        >>> as_fraction(0.1), as_fraction("0.18"), as_fraction(Fraction(1, 3))
        (Fraction(1, 10), Fraction(9, 50), Fraction(1, 3))
    """
    try:
        return Fraction(repr(float(value))) if isinstance(value, float) else Fraction(value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{name} is {value!r}; give a number, e.g. 0.9.") from error


def conformal_rank(n: int, alpha: Exact) -> int:
    """k = ⌈(n + 1)(1 − α)⌉, counted exactly.

    Args:
        n: how many rows there are, at least 1.
        alpha: how often a new score may exceed the threshold, in [0, 1).

    Returns:
        The rank, counted from 1; n + 1 where no finite threshold would do.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> conformal_rank(149, "0.18"), math.ceil((149 + 1) * (1 - 0.18))
        (123, 124)
        >>> [conformal_rank(n, 0.1) for n in (8, 9, 19)]                   # 8 rows: more than there are
        [9, 9, 18]
    """
    if n < 1:
        raise ValueError(f"there are {n} rows to choose a threshold on; give at least one.")
    allowed = as_fraction(alpha, name="alpha")
    if not 0 <= allowed < 1:
        raise ValueError(f"alpha is {alpha}: give how often the threshold may be exceeded, in [0, 1), e.g. 0.1.")
    return math.ceil((n + 1) * (1 - allowed))


def fewest_rows(alpha: Exact) -> int | None:
    """How many rows have a finite threshold; None where no number has (α = 0).

    Example:
        >>> fewest_rows("0.1"), fewest_rows("0.01"), fewest_rows(0)
        (9, 99, None)
    """
    allowed = as_fraction(alpha, name="alpha")
    return max(1, math.ceil(1 / allowed) - 1) if allowed > 0 else None


def conformal_threshold(scores: Tensor, alpha: Exact) -> float:
    """The ⌈(n + 1)(1 − α)⌉-th smallest score; +∞ where there are too few scores for that rank.

    Args:
        scores: (n,), one a row; higher fits worse. +∞ is a score.
        alpha: how often a new score may exceed the threshold, in [0, 1).

    Raises:
        ValueError: there is no score, one is NaN, or alpha is out of its range.

    Example:
        >>> conformal_threshold(torch.arange(1.0, 20.0), "0.1"), conformal_threshold(torch.arange(8.0), "0.1")
        (18.0, inf)
    """
    if scores.dim() != 1 or bool(scores.isnan().any()):
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}, {int(scores.isnan().sum())} of them NaN; give (n,) numbers."
        )
    rank = conformal_rank(len(scores), alpha)
    return float(as_float64(scores).sort().values[rank - 1]) if rank <= len(scores) else math.inf


def conformal_scores(predictions: Tensor, score: SetScore = "lac") -> Tensor:
    """How badly each class would fit each row.

    Args:
        predictions: as of `varlora.metrics.evaluate`: probabilities (N, C), or log-probabilities (N, C) or (N, S, C),
            whose draws are averaged. Probability 0 (log-probability −∞) is a choice that the row does not offer.
        score: "lac" or "aps".

    Returns:
        (N, C) in float64; +∞ for a choice that is not offered.

    Raises:
        ValueError: the predictions are no probabilities, or there is no such score.

    Example:
        >>> probs = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
        >>> conformal_scores(probs).tolist(), conformal_scores(probs, "aps").tolist()
        ([[0.5, 0.75, 0.75, inf]], [[0.5, 1.0, 1.0, inf]])
    """
    if score not in get_args(SetScore):
        raise ValueError(f"score is {score!r}; allowed: {', '.join(get_args(SetScore))}.")
    values, is_log = as_predictions(predictions)
    if values.dim() == 3:
        values = mean_log_probs(values)
    probs = values.exp() if is_log else values
    if score == "lac":
        scores = 1 - probs
    else:
        doubt, _ = (-probs).sort(dim=-1)
        sums = (-doubt).cumsum(-1)
        scores = sums.gather(-1, torch.searchsorted(doubt, -probs, right=True) - 1)
    return torch.where(values.isneginf() if is_log else values == 0, math.inf, scores)


@dataclass(frozen=True, kw_only=True)
class ConformalThreshold:
    """A threshold on scores of rows, and what it promises of the share of new rows within it.

    Attributes:
        value: the threshold; infinite where nothing is left out.
        coverage: the wanted share.
        rows: how many rows it was chosen on.
        expected: the share of new rows, on average over the choice of those rows (without ties).
        low: given those rows, the share itself is at least this, in 97.5 % of their choices.
        high: and at most this.
    """

    value: float
    coverage: float
    rows: int
    expected: float
    low: float
    high: float

    @property
    def _why_all(self) -> str:
        """Why nothing is left out."""
        needed = fewest_rows(1 - as_fraction(self.coverage))
        if needed is None:
            return "nothing less covers 100 %"
        if self.rows < needed:
            return f"{self.rows} rows are too few to leave any out at {100 * self.coverage:.4g} % ({needed} would do)"
        return "the right answer of too many of the rows has probability 0"

    @property
    def _draws(self) -> str:
        """What the promise is an average over, and how far it goes from one draw of the rows to another."""
        return (
            f"on average over which {self.rows} were drawn; 95 % of such draws give {100 * self.low:.1f} to "
            f"{100 * self.high:.1f} %"
        )


@dataclass(frozen=True, kw_only=True)
class SetThreshold(ConformalThreshold):
    """A threshold on the scores of classes: a class is in the set if its score is at most this.

    Attributes:
        score: "lac" or "aps".
    """

    score: SetScore

    @property
    def sentence(self) -> str:
        """The promise, in words."""
        if self.value == math.inf:
            return f"Every choice is in every set: {self._why_all}."
        return (
            f"At least {100 * self.coverage:.4g} % of new rows like these {self.rows} have the right answer in their "
            f"set, {self._draws}."
        )


def fit_threshold(scores: Tensor, coverage: Exact) -> dict[str, Any]:
    """The fields of a `ConformalThreshold`.

    Args:
        scores: (n,), one a row; higher fits worse.
        coverage: the wanted share of new rows within the threshold, in (0, 1].

    Raises:
        ValueError: as of `conformal_threshold`.
    """
    wanted = as_wanted(coverage)
    value = conformal_threshold(scores, 1 - wanted)
    expected, low, high = share_within(len(scores), conformal_rank(len(scores), 1 - wanted))
    rows = len(scores)
    return {"value": value, "coverage": float(wanted), "rows": rows, "expected": expected, "low": low, "high": high}


def threshold_for_sets(
    predictions: Tensor, labels: Tensor, coverage: Exact, *, score: SetScore = "lac"
) -> SetThreshold:
    """The threshold whose sets hold the right answer of a new row with a wanted probability.

    Args:
        predictions: as of `conformal_scores`, for rows that the model was not trained on and that are not reported.
        labels: (N,) their class indices.
        coverage: the wanted probability, in (0, 1].
        score: "lac" gives the smallest sets; "aps" makes hard rows' sets larger and easy ones' smaller.

    Raises:
        ValueError: an argument does not fit.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
        >>> threshold = threshold_for_sets(probs, torch.tensor([0, 1, 1, 0]), "0.6")
        >>> round(threshold.value, 4), threshold.rows, threshold.expected
        (0.3, 4, 0.6)
    """
    scores = conformal_scores(predictions, score)
    own = scores.gather(-1, as_labels(labels, scores).unsqueeze(-1)).squeeze(-1)
    return SetThreshold(score=score, **fit_threshold(own, coverage))


def prediction_sets(predictions: Tensor, threshold: SetThreshold) -> Tensor:
    """The classes whose score is within the threshold.

    Args:
        predictions: as of `conformal_scores`.
        threshold: from `threshold_for_sets`.

    Returns:
        (N, C) bool. A choice that a row does not offer is in no set. A set may be empty: no class is likely enough.

    Raises:
        ValueError: the predictions are no probabilities.

    Example:
        >>> validation = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
        >>> threshold = threshold_for_sets(validation, torch.tensor([0, 1, 1, 0]), "0.8")
        >>> prediction_sets(torch.tensor([[0.95, 0.05], [0.45, 0.55]]), threshold).tolist()
        [[True, False], [True, True]]
    """
    scores = conformal_scores(predictions, threshold.score)
    return (scores <= threshold.value) & scores.isfinite()


def set_metrics(sets: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """How often sets hold the right answer, and how large they are.

    Args:
        sets: (N, C) bool.
        labels: (N,) class indices; None where they are unknown.

    Returns:
        `mean_size`, `share_empty`, `share_singleton`, and with labels `coverage`.

    Raises:
        ValueError: there is no row, or the labels do not fit.

    Example:
        >>> sets = torch.tensor([[True, False], [True, True], [False, False], [True, False]])
        >>> set_metrics(sets, torch.tensor([0, 1, 1, 1]))
        {'coverage': 0.5, 'mean_size': 1.0, 'share_empty': 0.25, 'share_singleton': 0.5}
    """
    if sets.dim() != 2 or sets.dtype != torch.bool or 0 in sets.shape:
        raise ValueError(f"sets are {sets.dtype} of shape {tuple(sets.shape)}; give bool (N, C), N and C above 0.")
    sizes = sets.sum(-1)
    shares = {
        "mean_size": float(sizes.double().mean()),
        "share_empty": float((sizes == 0).double().mean()),
        "share_singleton": float((sizes == 1).double().mean()),
    }
    if labels is None:
        return shares
    right = sets.gather(-1, as_labels(labels, sets).unsqueeze(-1))
    return {"coverage": float(right.double().mean()), **shares}


def share_within(n: int, rank: int) -> tuple[float, float, float]:
    """The share of new rows within the rank-th smallest of n scores: its mean, and the middle 95 % of its Beta.

    Example:
        >>> [round(share, 3) for share in share_within(99, 90)]
        [0.9, 0.834, 0.95]
    """
    if rank > n:
        return 1.0, 1.0, 1.0
    tail = (1 - LEVEL) / 2
    low, high = (float(betaincinv(rank, n + 1 - rank, mass)) for mass in (tail, 1 - tail))
    return rank / (n + 1), low, high


def as_wanted(coverage: Exact, *, name: str = "coverage") -> Fraction:
    """A wanted share, in (0, 1].

    Example:
        >>> as_wanted("0.9")
        Fraction(9, 10)
    """
    wanted = as_fraction(coverage, name=name)
    if not 0 < wanted <= 1:
        raise ValueError(f"{name} is {coverage}: give a share in (0, 1], e.g. 0.9.")
    return wanted

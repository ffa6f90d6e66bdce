"""Whether new rows look exchangeable with those that a guarantee is from: a conformal test martingale, and a test.

Every guarantee here is for rows that are drawn as the n validation rows were. New rows without labels cannot show that
they are; they can show that they are not. The score is how sure the model is of a row, s_i.

Row by row (the martingale), for the t-th new row, with all rows before it,

    p_t = (#{i: s_i > s_t} + U_t · (#{i: s_i = s_t} + 1)) / (n + t),     U_t uniform: ties are broken at random
    M_t = Σ_ε C_t(ε),   C_t(ε) = ((1 − J) C_{t−1}(ε) + J M_{t−1} / 3) · (1 + ε (p_t − ½)),   ε in {−1, 0, 1}, C_0 = 1/3

If all rows are exchangeable, the p_t are independent and uniform, M is a martingale that starts at 1, and it ever
reaches 1/α with probability at most α (Ville), however long one looks. The rows' order matters: what changed early and
what changed late are both found, and one need not say when to look. Of several scores the average of their martingales
is one, too.

All at once (the test), the exact two-sample test of Kolmogorov and Smirnov of the new scores against the n: more
powerful where all new rows are of another kind and few. Its chance of a false alarm is α where it is looked at once.

`check_exchangeability` gives each half of α, so that one of them calls out falsely with probability at most α.

Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, Section 7.1; Vovk, Petej,
Nouretdinov, Ahlberg, Carlsson and Gammerman, arXiv:2102.10439 (the Simple Jumper, J = 0.01). MAPIE's
`OnlineMartingaleTest` is the same for labelled rows and a fitted classifier; ours, on unlabelled rows, is tested
against it.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varlora.metrics.inputs import as_float64

ALPHA = 0.01
"""The chance of a false alarm."""
JUMP = 0.01
"""J."""
BETS = (-1.0, 0.0, 1.0)
"""ε."""


class ConformalTestMartingale:
    """M_t, as rows come.

    Attributes:
        value: M_t of now.
        highest: of all so far.
        rows: t, how many new rows there were.
        alarm_at: the t at which it first reached 1/α; None: not yet.

    Example:
        >>> martingale = ConformalTestMartingale(torch.linspace(0.5, 1, 200), alpha=0.01)
        >>> martingale.update(torch.linspace(0.5, 1, 100)[torch.arange(100) * 37 % 100]).alarm_at is None
        True
        >>> 100 < martingale.update(torch.linspace(0.3, 0.6, 100)).alarm_at < 200
        True
    """

    def __init__(self, reference: Tensor | Sequence[float], *, alpha: float = ALPHA, seed: int = 0) -> None:
        """Starts it.

        Args:
            reference: (n,) scores of the validation rows.
            alpha: the chance of a false alarm, ever.
            seed: of the U_t.

        Raises:
            ValueError: there is no score, one is NaN, or alpha is out of its range.
        """
        _check_alpha(alpha)
        self._seen = sorted(_scores(reference, "reference").tolist())
        self._wealth = [1 / len(BETS)] * len(BETS)
        self._random = np.random.default_rng(seed)
        self.alpha = alpha
        self.value = self.highest = 1.0
        self.rows = 0
        self.alarm_at: int | None = None

    def update(self, scores: Tensor | Sequence[float]) -> ConformalTestMartingale:
        """Takes new rows in, in their order.

        Args:
            scores: (N,).

        Returns:
            Itself.

        Raises:
            ValueError: a score is NaN.
        """
        for score in _scores(scores, "new", least=0).tolist():
            self.bet(self._p_value(score))
        return self

    def bet(self, p_value: float) -> None:
        """Takes a p-value in."""
        total = sum(self._wealth)
        self._wealth = [
            ((1 - JUMP) * wealth + JUMP * total / len(BETS)) * (1 + bet * (p_value - 0.5))
            for wealth, bet in zip(self._wealth, BETS, strict=True)
        ]
        self.rows += 1
        self.value = sum(self._wealth)
        self.highest = max(self.highest, self.value)
        if self.alarm_at is None and self.value >= 1 / self.alpha:
            self.alarm_at = self.rows

    def _p_value(self, score: float) -> float:
        low, high = bisect.bisect_left(self._seen, score), bisect.bisect_right(self._seen, score)
        above, equal = len(self._seen) - high, high - low
        p_value = (above + self._random.uniform() * (equal + 1)) / (len(self._seen) + 1)
        self._seen.insert(high, score)
        return float(p_value)


@dataclass(frozen=True, kw_only=True)
class ExchangeabilityCheck:
    """What new rows say of it.

    Attributes:
        rows: how many new rows.
        reference_rows: n.
        alpha: the chance of a false alarm of both together.
        martingale: the highest M_t.
        alarm_at: the row, from 1, at which it reached 2/α; None: it did not.
        p_value: of the two-sample test; it calls out at α/2.
        reference_mean: mean score of the n rows.
        mean: mean score of the new rows.
    """

    rows: int
    reference_rows: int
    alpha: float
    martingale: float
    alarm_at: int | None
    p_value: float
    reference_mean: float
    mean: float

    @property
    def exchangeable(self) -> bool:
        """Whether nothing speaks against it; that is no proof of it."""
        return self.alarm_at is None and self.p_value > self.alpha / 2

    @property
    def sentence(self) -> str:
        """The finding, with the chance that it is false, in words."""
        evidence = (
            f"test martingale {self.martingale:.3g}, two-sample p = {self.p_value:.2g}, mean confidence "
            f"{self.mean:.3f} against {self.reference_mean:.3f}"
        )
        if self.exchangeable:
            return (
                f"Nothing in {self.rows} rows speaks against their being drawn as the {self.reference_rows} were that "
                f"the decision is from ({evidence}); that is no proof."
            )
        since = f", from row {self.alarm_at} on at the latest" if self.alarm_at is not None else ""
        return (
            f"These {self.rows} rows are not drawn as the {self.reference_rows} were that the decision is from{since} "
            f"({evidence}; a false alarm has a chance of at most {100 * self.alpha:.3g} %): its guarantees do not hold "
            "for them."
        )


def check_exchangeability(
    reference: Tensor | Sequence[float], new: Tensor | Sequence[float], *, alpha: float = ALPHA, seed: int = 0
) -> ExchangeabilityCheck:
    """Whether new rows look exchangeable with reference rows, by how sure the model is of them.

    Args:
        reference: (n,) scores of the validation rows.
        new: (N,) of the new rows, in their order.
        alpha: the chance of a false alarm.
        seed: breaks ties, decides nothing else.

    Raises:
        ValueError: there is no score, one is NaN, or alpha is out of its range.

    Example:
        >>> sure = torch.linspace(0.5, 1, 300)
        >>> shuffled = sure[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
        >>> check_exchangeability(sure, shuffled[:100]).exchangeable
        True
        >>> check_exchangeability(sure, 0.8 * shuffled[:100]).exchangeable
        False
    """
    _check_alpha(alpha)
    from scipy.stats import ks_2samp  # takes half a second, and most callers of this module wait for a martingale

    before, after = _scores(reference, "reference"), _scores(new, "new")
    martingale = ConformalTestMartingale(before, alpha=alpha / 2, seed=seed).update(after)
    test = ks_2samp(before.numpy(), after.numpy(), method="exact" if len(before) * len(after) <= 10**6 else "asymp")
    return ExchangeabilityCheck(
        rows=len(after),
        reference_rows=len(before),
        alpha=alpha,
        martingale=martingale.highest,
        alarm_at=martingale.alarm_at,
        p_value=float(test.pvalue),
        reference_mean=float(before.mean()),
        mean=float(after.mean()),
    )


def _scores(scores: Tensor | Sequence[float], of: str, *, least: int = 1) -> Tensor:
    values = as_float64(torch.as_tensor(scores))
    if values.dim() != 1 or len(values) < least or bool(values.isnan().any()):
        raise ValueError(
            f"the {of} scores have shape {tuple(values.shape)}, {int(values.isnan().sum())} of them NaN; give numbers "
            f"(n,), n at least {least}."
        )
    return values


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}: give the chance of a false alarm, in (0, 1), e.g. 0.01.")

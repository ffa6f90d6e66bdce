"""The temperature that divides logits, fitted on validation rows, few or many.

For the S draws of N rows, with p_T(y | x) = (1/S) Σ_s softmax(f_s(x) / T)[y],

    L(T)      = −Σ_n log p_T(y_n | x_n)
    T_ML      = argmin_T L(T)                                             the likeliest
    T_MAP     = argmin_T L(T) + (log T)² / (2 s²)                         the prior: log T ~ N(0, s²), s = ½ log 2
    z         = |Σ_n u_n(y_n)| / √(Σ_n Σ_y p_1(y | x_n) u_n(y)²),         u_n(y) = d log p_T(y | x_n) / d(1/T) at T = 1
    T         = T_MAP if z > c(N), else 1

z is Rao's score statistic of "T = 1": its variance is the one that calibrated predictions have, exactly, whatever the
rows; that of the rows themselves says of six rows that were all right that T must fall, and is wrong in every second
case. c(N) is `varlora.metrics.standard_errors_for`. The prior says that T lies between ½ and 2 in 95 of 100 cases. Of
s = ¼, 0.35, ½, 0.7, 1 and ∞, with T = 0.7, 1, 1.5, 2 and 3 in truth and 6 to 500 rows, it was the largest that lost
less than 0.002 nat wherever 1 was right or nearly so; without a prior and without z, six rows lose more than 1 nat.

Source: Guo et al. 2017, arXiv 1706.04599 (T_ML); Rao 1948, "Large sample tests of statistical hypotheses" (z). The
prior and c(N) are our choice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from varlora.io.words import counted
from varlora.metrics.scoring import log_losses
from varlora.metrics.selection import standard_errors_for
from varlora.metrics.uncertainty import mean_log_probs

logger = logging.getLogger(__name__)

PRIOR_SD = math.log(2) / 2
"""s, of log T: two of them are a factor of 2."""
FOLDS = 5
BOUNDS = (0.01, 100.0)
GRID = 21
"""Temperatures tried before the best bracket is narrowed down."""
FARTHEST = 1000.0
"""Standard errors, beyond which nobody counts them."""
LARGEST = 2**18
"""Entries of the logits, times the temperatures tried, that are held at once."""


@dataclass(frozen=True, kw_only=True)
class TemperatureFit:
    """A temperature, and what decided it.

    Attributes:
        value: T.
        likeliest: T_ML, at a bound where the NLL still falls there.
        rows: N.
        distance: z, how many standard errors the rows are from what calibrated predictions would give; at most 1000.
        needed: c(N), how many it takes to leave T = 1.
    """

    value: float
    likeliest: float
    rows: int
    distance: float
    needed: float

    @property
    def kept(self) -> bool:
        """Whether T stays 1."""
        return self.value == 1.0

    @property
    def sentence(self) -> str:
        """T, from how many rows, and why.

        Example:
            >>> TemperatureFit(value=1.0, likeliest=0.147, rows=6, distance=0.84, needed=2.0).sentence
            'T = 1 from 6 rows (kept: 0.8 standard errors from calibrated, 2.0 are asked for; the likeliest is 0.147)'
        """
        why = f"{self.distance:.1f} standard errors from calibrated"
        if self.kept:
            why = f"kept: {why}, {self.needed:.1f} are asked for; the likeliest is {self.likeliest:.3g}"
        return f"T = {self.value:.4g} from {counted(self.rows, 'row')} ({why})"


def fit_temperature(
    logits: Tensor, labels: Tensor, *, candidates: float = 1.0, warn: bool = True, of: str = ""
) -> TemperatureFit:
    """T for predictions, and what decided it: 1 unless the rows say more than noise does, and then shrunk towards 1.

    Args:
        logits: (N, C) or, for S draws, (N, S, C), up to a constant per row and draw (log-probabilities will do); -inf
            for choices that do not exist.
        labels: (N,) class indices.
        candidates: M, of how many sets of rows, each with a T of its own, these are one.
        warn: whether to warn where only the prior holds T.
        of: what the warning is to name: whose predictions they are.

    Raises:
        ValueError: as `likeliest_temperature`.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]]).repeat(400, 1)
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1] * 100)).value, 3)   # the likeliest is 1.820
        1.735
        >>> fit = fit_temperature(logits[:6], torch.tensor([0, 0, 0, 0, 1, 1]))
        >>> fit.rows, round(fit.distance, 2), round(fit.likeliest, 2), fit.value
        (6, 1.62, 2.89, 1.0)
    """
    likeliest = likeliest_temperature(logits, labels, warn=False)
    distance, needed = _score(*_checked(logits, labels)), standard_errors_for(len(labels), candidates)
    value = likeliest_temperature(logits, labels, prior_sd=PRIOR_SD, warn=False) if distance > needed else 1.0
    if warn and value != 1.0 and likeliest in BOUNDS:
        logger.warning(
            "%sthe NLL of %d validation row(s) falls beyond T = %g: only the prior holds T = %.3g",
            f"{of}: " if of else "",
            len(labels),
            likeliest,
            value,
        )
    return TemperatureFit(value=value, likeliest=likeliest, rows=len(labels), distance=distance, needed=needed)


def likeliest_temperature(
    logits: Tensor, labels: Tensor, *, prior_sd: float = math.inf, warn: bool = True, of: str = ""
) -> float:
    """The temperature that minimises the NLL of the average over draws, as Guo et al. define it; or with a prior.

    For one draw the problem is convex in 1/T. For several it need not be: the best of a grid of temperatures is
    narrowed down to where the slope is 0. Of few rows it is often 0, or infinite: predict with `fit_temperature`.

    Args:
        logits: (N, C) or, for S draws, (N, S, C), up to a constant per row and draw (log-probabilities will do); -inf
            for choices that do not exist.
        labels: (N,) class indices.
        prior_sd: s of the prior on log T; infinite: none.
        warn: whether to warn of a bound.
        of: what the warning is to name: whose predictions they are.

    Returns:
        T in [0.01, 100]; a bound is returned, with a warning, when the NLL still falls there (when every label is
        the argmax, the best T is 0).

    Raises:
        ValueError: no row, a label outside 0..C-1 or of a choice that does not exist, a logit that is NaN or +inf, or
            a `prior_sd` that is not positive.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> round(likeliest_temperature(logits, labels), 4)                    # log-odds 2 / T must be log 3
        1.8205
        >>> round(likeliest_temperature(logits, labels, prior_sd=0.35), 4)
        1.1026

    Source: arXiv 1706.04599, Section 4.2.
    """
    if not prior_sd > 0:
        raise ValueError(f"prior_sd is {prior_sd!r}; it must be positive (infinite: no prior).")
    logits, labels = _checked(logits, labels)
    own = logits[torch.arange(len(labels)), :, labels]
    finite = logits.masked_fill(torch.isinf(logits), 0.0)

    def costs(inverses: Tensor) -> Tensor:
        """NLL and penalty at each 1/T (K,)."""
        of_label = own * inverses[:, None, None] - (logits * inverses[:, None, None, None]).logsumexp(-1)
        return (inverses.log() / prior_sd).square() / 2 - of_label.logsumexp(2).sum(1)

    def slope(inverse: float) -> float:
        """Their derivative by 1/T: −Σ_n Σ_s w_s (logit of the label − E_s[logit])."""
        log_probs = torch.log_softmax(logits * inverse, dim=-1)
        weights = (own * inverse - (logits * inverse).logsumexp(-1)).softmax(1)
        rise = own - (log_probs.exp() * finite).sum(-1)
        return math.log(inverse) / (prior_sd**2 * inverse) - float((weights * rise).sum())

    low, high = BOUNDS
    grid = low * (high / low) ** (torch.arange(GRID, dtype=torch.float64) / (GRID - 1))
    together = max(1, LARGEST // logits.numel())
    best = int(torch.cat([costs(1 / some) for some in torch.split(grid, together)]).argmin())
    if best in (0, GRID - 1):
        bound = low if best == 0 else high
        if warn:
            whose = f"{of}: " if of else ""
            logger.warning(
                "%sthe temperature that minimises the validation NLL lies beyond %g; using %g", whose, bound, bound
            )
        return bound
    left, right = float(1 / grid[best + 1]), float(1 / grid[best - 1])
    return 1 / _root(slope, left, right)


def cross_fitted(logits: Tensor, labels: Tensor, *, folds: int = FOLDS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The loss of every row under a T_MAP that was fitted to the other folds' rows.

    What a temperature gains on the rows that it was fitted to is a little too good; this is not.

    Args:
        logits: (N, S, C), as for `fit_temperature`.
        labels: (N,) class indices.
        folds: K, at most N; the rows are dealt out at random, so that their order does not matter.
        seed: decides how.

    Returns:
        The losses (N,) in nats, and the temperature that each row was divided by (N,), float64.

    Raises:
        ValueError: `folds` is out of its range, or as `fit_temperature`.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]]]).repeat(40, 1, 1)
        >>> losses, temperatures = cross_fitted(logits, torch.tensor([0, 0, 0, 1] * 10))
        >>> bool(losses.mean() > math.log(4) - 0.75 * math.log(3))     # the loss of the T fitted to all rows
        True
    """
    if not 2 <= folds <= len(labels):
        raise ValueError(f"folds is {folds} for {len(labels)} rows; it must lie between 2 and their number.")
    dealt = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)) % folds
    temperatures = torch.empty(len(labels), dtype=torch.float64)
    for fold in range(folds):
        held_out = dealt == fold
        temperatures[held_out] = likeliest_temperature(
            logits[~held_out], labels[~held_out], prior_sd=PRIOR_SD, warn=False
        )
    divided = torch.log_softmax(logits.double() / temperatures[:, None, None], dim=-1)
    return log_losses(mean_log_probs(divided), labels), temperatures


def _root(slope: Callable[[float], float], left: float, right: float) -> float:
    """Where a slope rises through 0: false position, Illinois form; halving where the ends do not bracket a root."""
    at_left, at_right, last, side = slope(left), slope(right), math.inf, 0
    for _ in range(100):
        middle = math.sqrt(left * right)
        if at_left < 0 < at_right:
            middle = (left * at_right - right * at_left) / (at_right - at_left)
        at_middle = slope(middle)
        if at_middle == 0 or abs(middle - last) <= 1e-14 * middle:
            break
        last = middle
        if at_middle > 0:
            right, at_right, at_left, side = middle, at_middle, at_left / (2 if side == 1 else 1), 1
        else:
            left, at_left, at_right, side = middle, at_middle, at_right / (2 if side == -1 else 1), -1
    return middle


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, S, C) in float64 and labels that a temperature can be fitted to."""
    if logits.ndim not in (2, 3) or not len(logits) or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"need logits (N, C) or (N, S, C) and labels (N,), got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    logits = logits if logits.ndim == 3 else logits[:, None]
    if not bool(((labels >= 0) & (labels < logits.shape[2])).all()):
        raise ValueError(f"labels must be in 0..{logits.shape[2] - 1}; rows without a label cannot be used.")
    logits = logits.double()
    of_label = logits[torch.arange(len(labels)), :, labels]
    if not bool((of_label > -torch.inf).all()) or bool(logits.isnan().any()):
        raise ValueError("some row's label has logit -inf or NaN; no temperature can make it likely.")
    if bool(logits.isposinf().any()):
        raise ValueError("some row has logit +inf, which no temperature changes; give finite logits.")
    return logits, labels


def _score(logits: Tensor, labels: Tensor) -> float:
    """z of "T = 1", at most `FARTHEST`; 0 where no temperature changes anything."""
    logits = logits - logits.amax(-1, keepdim=True)  # so that choices that are alike differ by no rounding
    log_probs = torch.log_softmax(logits, dim=-1)
    averaged = torch.logsumexp(log_probs, dim=1, keepdim=True)  # log S more than the average
    finite = logits.masked_fill(torch.isinf(logits), 0.0)
    rise = finite - (log_probs.exp() * finite).sum(-1, keepdim=True)
    exists = averaged > -torch.inf
    shares = torch.where(exists, (log_probs - averaged).exp(), 0.0)
    score = (shares * rise).sum(1)  # (N, C): u
    probs = averaged[:, 0].exp() / logits.shape[1]
    information = float((probs * score.square()).sum())
    own = float(score[torch.arange(len(labels)), labels].sum())
    if information > 0:
        return min(abs(own) / math.sqrt(information), FARTHEST)
    return FARTHEST if own else 0.0  # a wrong answer of probability 0: calibrated rows have none

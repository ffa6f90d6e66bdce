"""Exact statements about a share: the binomial distribution, and the intervals that follow from it.

    X ~ Binomial(n, p):    P(X ≤ k) = Σ_{i ≤ k} C(n, i) p^i (1 − p)^(n − i)
    Beta(a, b), a and b whole:    P(Beta ≤ x) = P(Binomial(a + b − 1, x) ≥ a)

Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934.
"""

from __future__ import annotations

import functools
import math

import torch

_HALVINGS = 48
"""Of [0, 1]: to 4e-15."""


def binomial_cdf(successes: int, trials: int, probability: float) -> float:
    """P(X ≤ successes) for X ~ Binomial(trials, probability).

    Args:
        successes: k; below 0 the answer is 0.
        trials: n, at least 0.
        probability: p, in [0, 1].

    Raises:
        ValueError: there are fewer than 0 trials, or the probability is none.

    Example:
        >>> round(binomial_cdf(1, 4, 0.5), 6)
        0.3125
    """
    if trials < 0 or not 0 <= probability <= 1:
        raise ValueError(f"got {trials} trials of probability {probability}; give 0 or more, and one in [0, 1].")
    if successes < 0:
        return 0.0
    if successes >= trials or probability == 0:
        return 1.0
    if probability == 1:
        return 0.0
    counts = torch.arange(successes + 1, dtype=torch.float64)
    logs = (
        math.lgamma(trials + 1)
        - torch.lgamma(counts + 1)
        - torch.lgamma(trials - counts + 1)
        + counts * math.log(probability)
        + (trials - counts) * math.log1p(-probability)
    )
    return min(1.0, float(logs.exp().sum()))


def beta_quantile(a: int, b: int, mass: float) -> float:
    """The x with P(Beta(a, b) ≤ x) = mass, for whole a and b.

    Args:
        a: first parameter, at least 1.
        b: second parameter, at least 1.
        mass: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> round(beta_quantile(1, 1, 0.25), 6), round(beta_quantile(2, 1, 0.25), 6)
        (0.25, 0.5)
    """
    if a < 1 or b < 1 or not 0 < mass < 1:
        raise ValueError(f"Beta({a}, {b}) at {mass}: a and b must be 1 or more, the mass between 0 and 1.")
    return _quantile(a, b, mass)


def clopper_pearson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share: it covers the true one with at least this probability, however few trials.

    Args:
        successes: how often it happened.
        trials: of how many independent trials; 0 gives (0, 1).
        level: the probability.

    Raises:
        ValueError: there are more successes than trials, or the level is not between 0 and 1.

    Example:
        >>> low, high = clopper_pearson(9, 10)
        >>> round(low, 4), round(high, 4)
        (0.555, 0.9975)
    """
    if not 0 <= successes <= trials or not 0 < level < 1:
        raise ValueError(f"got {successes} of {trials} at level {level}; give 0 to {trials}, and a level in (0, 1).")
    tail = (1 - level) / 2
    low = beta_quantile(successes, trials - successes + 1, tail) if successes > 0 else 0.0
    high = beta_quantile(successes + 1, trials - successes, 1 - tail) if successes < trials else 1.0
    return low, high


@functools.lru_cache(maxsize=4096)
def _quantile(a: int, b: int, mass: float) -> float:
    trials = a + b - 1
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # P(X ≥ a), counted as failures so that a small tail is a sum and not a difference.
        if binomial_cdf(trials - a, trials, 1 - middle) < mass:
            low = middle
        else:
            high = middle
    return (low + high) / 2

"""Exact statements about a share: the binomial distribution, and the intervals that follow from it.

    X ~ Binomial(n, p):    P(X ≤ k) = P(Beta(n − k, k + 1) ≤ 1 − p)

SciPy's incomplete beta function and its inverse, to 1e-11 of the value however small it is; the exact intervals below
and the guarantees of `varlora.metrics.selective_accuracy` rest on them.

Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934.
"""

from __future__ import annotations

from scipy import special


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
    return float(special.betainc(trials - successes, successes + 1, 1 - probability))


def beta_quantile(a: float, b: float, mass: float) -> float:
    """The x with P(Beta(a, b) ≤ x) = mass.

    Args:
        a: first parameter, above 0.
        b: second parameter, above 0.
        mass: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> round(beta_quantile(1, 1, 0.25), 6), round(beta_quantile(2, 1, 0.25), 6)
        (0.25, 0.5)
    """
    if not (a > 0 and b > 0 and 0 < mass < 1):
        raise ValueError(f"Beta({a}, {b}) at {mass}: a and b must be above 0, the mass between 0 and 1.")
    return float(special.betaincinv(a, b, mass))


def clopper_pearson(successes: float, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share: it covers the true one with at least this probability, however few trials.

    Args:
        successes: how often it happened; a mean over several runs on the same trials need not be whole.
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

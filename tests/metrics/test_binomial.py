"""The binomial distribution and exact intervals, against exact fractions and SciPy's own functions for them."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from scipy import stats

from varlora.metrics import beta_quantile, binomial_cdf, clopper_pearson


@pytest.mark.parametrize("trials", [0, 1, 7, 150, 20_000])
@pytest.mark.parametrize("probability", [0.0, 1e-4, 0.05, 0.5, 0.97, 1.0])
def test_the_distribution_is_scipys(trials: int, probability: float) -> None:
    for successes in {-1, 0, 1, round(trials * probability), trials - 1, trials, trials + 1}:
        expected = float(stats.binom.cdf(successes, trials, probability))
        assert binomial_cdf(successes, trials, probability) == pytest.approx(expected, rel=1e-8, abs=1e-300)


@pytest.mark.parametrize(
    ("successes", "trials", "probability"),
    [(0, 149, 0.05), (5, 200, 0.05), (3, 1000, 0.1), (700, 1000, 0.9), (20, 300, 0.5), (299, 300, 0.99)],
)
def test_the_distribution_is_that_of_exact_fractions_however_small_the_tail(
    successes: int, trials: int, probability: float
) -> None:
    p = Fraction(probability)
    exact = sum(math.comb(trials, i) * p**i * (1 - p) ** (trials - i) for i in range(successes + 1))
    assert binomial_cdf(successes, trials, probability) == pytest.approx(float(exact), rel=1e-11, abs=0)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 9), (9, 1), (90, 10), (5000, 37)])
@pytest.mark.parametrize("mass", [1e-4, 0.025, 0.5, 0.975])
def test_quantiles_of_beta_are_scipys(a: int, b: int, mass: float) -> None:
    assert beta_quantile(a, b, mass) == pytest.approx(float(stats.beta.ppf(mass, a, b)), rel=1e-8)


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (3, 5), (190, 200), (1, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_is_scipys(successes: int, trials: int, level: float) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    assert clopper_pearson(successes, trials, level=level) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_trials_say_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_misuse() -> None:
    with pytest.raises(ValueError, match="-1 trials"):
        binomial_cdf(0, -1, 0.5)
    with pytest.raises(ValueError, match=r"probability 1\.5"):
        binomial_cdf(0, 1, 1.5)
    with pytest.raises(ValueError, match="a and b must be above 0"):
        beta_quantile(0, 1, 0.5)
    with pytest.raises(ValueError, match="3 of 2"):
        clopper_pearson(3, 2)
    with pytest.raises(ValueError, match="at level 1"):
        clopper_pearson(1, 2, level=1.0)

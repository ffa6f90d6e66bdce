"""A guaranteed accuracy of the answered rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from varlora.metrics import CannotGuaranteeError, threshold_for_accuracy


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread_errors(n: int, errors: int) -> Tensor:
    """n rows, so many of them wrong, evenly."""
    correct = torch.ones(n, dtype=torch.bool)
    correct[torch.linspace(1, n - 2, errors).long()] = False
    return correct


def test_the_largest_share_that_passes() -> None:
    """The least sure are wrong half of the time; each share's test by hand."""
    n, target, delta = 1000, 0.9, 0.05
    sure = torch.linspace(1, 0, n, dtype=torch.float64)
    correct = torch.arange(n) % 2 == 0
    correct[:700] = spread_errors(700, 20)
    found = threshold_for_accuracy(sure, correct, target, delta=delta)
    level = delta / found.tests
    passing = [m for m in range(50, n + 1, 50) if stats.binom.cdf(int((~correct[:m]).sum()), m, 1 - target) <= level]
    assert found.answered == max(passing) < n
    assert found.errors == int((~correct[: found.answered]).sum())
    assert sure[found.answered - 1] >= found.value > sure[found.answered]
    assert int((sure >= found.value).sum()) == found.answered
    bound = stats.beta.ppf(level, found.answered - found.errors, found.errors + 1)
    assert found.bound == pytest.approx(float(bound))
    assert found.bound >= target
    assert found.tests == 19  # the surest 50 of the 1000 would pass no test


def test_a_row_between_two_of_the_rows_is_answered_as_in_the_proof() -> None:
    """The answered are those above the next one, not those from the last answered one upwards."""
    sure = torch.arange(400, 0, -1).double()
    correct = torch.arange(400) < 300
    found = threshold_for_accuracy(sure, correct, "0.9")
    first_left_out = sure[found.answered]
    assert first_left_out < found.value < first_left_out + 1e-9


def test_all_rows_are_answered_where_all_are_right_enough() -> None:
    found = threshold_for_accuracy(uniform(300), torch.ones(300).bool(), "0.95")
    assert (found.value, found.answered, found.errors) == (-math.inf, 300, 0)


def test_ties_stay_together() -> None:
    sure = torch.tensor([0.9] * 200 + [0.5] * 150 + [0.1] * 50)
    correct = torch.cat([torch.ones(200), spread_errors(150, 5).double(), torch.zeros(50)])
    found = threshold_for_accuracy(sure, correct, "0.9")
    assert (found.answered, found.errors) == (350, 5)
    assert 0.1 < found.value <= 0.5


@pytest.mark.parametrize("kind", ["rising", "falling", "flat", "tied"])
def test_the_guarantee_fails_no_more_often_than_it_says(kind: str) -> None:
    """Error rates are known, so that the true accuracy of the answered is: below the target at most δ of the time."""
    n, target, delta, trials = 300, 0.85, 0.2, 150
    grid = (torch.arange(2000).double() + 0.5) / 2000

    def score(u: Tensor) -> Tensor:
        return (5 * u).floor() / 5 if kind == "tied" else u

    def error(s: Tensor) -> Tensor:
        rates = {"rising": 0.3 * (1 - s), "falling": 0.14 + 0.04 * s, "flat": torch.full_like(s, 0.1501)}
        return rates.get(kind, 0.25 * (1 - s))

    generator = torch.Generator().manual_seed(n)
    failed = answered = 0
    for _ in range(trials):
        sure = score(torch.rand(n, generator=generator, dtype=torch.float64))
        correct = torch.rand(n, generator=generator, dtype=torch.float64) >= error(sure)
        try:
            value = threshold_for_accuracy(sure, correct, target, delta=delta).value
        except CannotGuaranteeError:
            continue
        answered += 1
        chosen = score(grid)[score(grid) >= value]
        failed += float((1 - error(chosen)).mean()) < target - 1e-9
    assert failed / trials <= delta + 3 * math.sqrt(delta * (1 - delta) / trials)
    if kind == "rising":
        assert answered > trials / 2
    if kind == "flat":  # every choice is a failure: the test must be able to see one
        assert 0 < failed == answered


def test_more_rows_answer_more() -> None:
    answered = []
    for n in (600, 3000, 30_000):
        sure = uniform(n, seed=n)
        correct = uniform(n, seed=n + 1) >= 0.3 * (1 - sure)
        answered.append(threshold_for_accuracy(sure, correct, "0.9").answered / n)
    assert answered == sorted(answered)
    assert answered[-1] == pytest.approx(0.65, abs=0.051)  # errors are .1 on average over the surest two thirds


def test_few_rows_are_refused_with_what_they_could_promise() -> None:
    with pytest.raises(CannotGuaranteeError) as refused:
        threshold_for_accuracy(uniform(30), torch.ones(30).bool(), "0.95")
    assert refused.value.best == pytest.approx(0.05 ** (1 / 30))
    message = str(refused.value)
    assert "an accuracy of 95 % among the answered cannot be guaranteed with 95 % probability from 30 rows" in message
    assert "The best that they guarantee is 90.5 %, by answering the surest 100 % (30 of 30 right)." in message
    needed = refused.value.rows_needed
    assert needed is not None
    assert f"About {needed} rows would do" in message
    threshold_for_accuracy(uniform(needed), torch.ones(needed).bool(), "0.95")


def test_as_many_rows_as_it_says_would_do() -> None:
    n = 200
    sure, correct = torch.linspace(1, 0, n), spread_errors(n, 14)
    with pytest.raises(CannotGuaranteeError, match="rows would do if the answers stay as right") as refused:
        threshold_for_accuracy(sure, correct, "0.92")
    needed = refused.value.rows_needed
    assert needed is not None
    each_again = (torch.arange(needed) * n) // needed  # the same rows several times over
    threshold_for_accuracy(torch.linspace(1, 0, needed), correct[each_again], "0.92")


def test_where_more_rows_would_not_do() -> None:
    sure, correct = torch.linspace(1, 0, 200), torch.arange(200) % 4 != 1
    with pytest.raises(CannotGuaranteeError, match="100 times as many would not do") as refused:
        threshold_for_accuracy(sure, correct, "0.9")
    assert refused.value.rows_needed is None
    assert 0.6 < refused.value.best < 0.75


def test_where_only_very_many_rows_would_do() -> None:
    sure, correct = torch.linspace(1, 0, 300), spread_errors(300, 8)
    with pytest.raises(CannotGuaranteeError, match="no share that is large enough to judge") as refused:
        threshold_for_accuracy(sure, correct, "0.973")  # 97.33 % are right
    assert refused.value.rows_needed is None


def test_tests_are_as_many_as_rows_suffice_for() -> None:
    """Each test must be passable: accuracy^m ≤ δ/K for the smallest share's m."""
    for n in (60, 100, 400, 5000):
        found = threshold_for_accuracy(uniform(n), torch.ones(n).bool(), "0.95")
        smallest = math.ceil(n * (1.05 - found.tests / 20) - 1e-9)
        assert stats.binom.cdf(0, smallest, 0.05) <= 0.05 / found.tests
        if found.tests < 20:
            assert stats.binom.cdf(0, math.ceil(n * (1 - found.tests / 20) - 1e-9), 0.05) > 0.05 / (found.tests + 1)


def test_what_is_promised_is_said() -> None:
    found = threshold_for_accuracy(torch.linspace(1, 0, 400), spread_errors(400, 4), "0.95")
    assert found.sentence == (
        "At least 95 % of the answers to new rows like these 400 are right, for 95 % of the draws of such 400; 400 of "
        "these are answered, 4 wrongly."
    )


@pytest.mark.parametrize(
    ("accuracy", "delta", "message"),
    [
        (1, 0.05, "accuracy is 1: .* cannot be guaranteed"),
        (0, 0.05, "accuracy is 0"),
        ("high", 0.05, "accuracy is 'high'; give a number"),
        (0.9, 0.0, "delta is 0.0"),
        (0.9, 1.0, "delta is 1.0"),
    ],
)
def test_misuse(accuracy: Any, delta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        threshold_for_accuracy(uniform(50), torch.ones(50), accuracy, delta=delta)
    with pytest.raises(ValueError, match="same shape"):
        threshold_for_accuracy(uniform(50), torch.ones(49), 0.9)

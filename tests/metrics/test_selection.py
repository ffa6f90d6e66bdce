"""A candidate is taken for what it gains beyond noise, and the simplest of those that gain as much."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor

from varlora.metrics import (
    WORTHWHILE,
    independent,
    is_free,
    largest_free,
    not_worse,
    one_standard_error,
    paired_error,
    standard_errors_for,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(mean: float, error: float, rows: int = 100) -> Tensor:
    """Differences with this mean and this standard error."""
    noise = normal(rows)
    noise = (noise - noise.mean()) / noise.std()
    return mean + error * math.sqrt(rows) * noise


def test_the_paired_error_is_that_of_the_paired_t_test() -> None:
    losses, reference = normal(37, seed=1), normal(37, seed=2)
    difference, error = paired_error(losses, reference)
    expected = stats.ttest_rel(losses, reference)
    assert difference / error == pytest.approx(expected.statistic)
    assert difference == pytest.approx(float((losses - reference).mean()))
    unpaired = math.sqrt(float(losses.var() + reference.var()) / 37)
    assert abs(error - unpaired) > 1e-3


@pytest.mark.parametrize(("gain", "chosen"), [(0.9, 0), (1.1, 1)])
@pytest.mark.parametrize("standard_errors", [1.0, 2.0])
def test_the_default_is_left_for_more_than_its_standard_errors(
    gain: float, chosen: int, standard_errors: float
) -> None:
    default = normal(100, seed=3)
    losses = torch.stack([default, default + exact(-gain * standard_errors * 0.1, 0.1)])
    found = one_standard_error(losses, simplicity=[0, 1], standard_errors=standard_errors)
    assert found == chosen
    assert float(losses[1].mean()) < float(losses[0].mean())  # by the NLL alone it would win either time


def test_of_those_as_good_as_the_best_the_simplest() -> None:
    default = normal(100, seed=3)
    best = default + exact(-0.5, 0.01)
    as_good = best + exact(0.09, 0.061)  # 1.5 standard errors of 100 rows
    worse = best + exact(0.09, 0.059)
    losses = torch.stack([default, best, as_good, worse])
    assert one_standard_error(losses, simplicity=[0, 3, 2, 1]) == 2
    assert one_standard_error(losses, simplicity=[0, 1, 2, 3]) == 1
    assert one_standard_error(losses, simplicity=[0, 1, 1, 1]) == 1  # equally simple: the lower loss
    assert one_standard_error(losses[[1, 0, 2, 3]], simplicity=[3, 0, 2, 1]) == 0  # a default that is best


def test_a_candidate_that_is_not_helpful_is_not_taken_for_its_simplicity() -> None:
    default = normal(100, seed=3)
    noisy = default + exact(-0.3, 0.4)
    best = default + exact(-0.5, 0.1)
    assert not_worse(noisy, best)
    assert one_standard_error(torch.stack([default, noisy, best]), simplicity=[0, 1, 2]) == 2


def test_infinite_losses() -> None:
    default = normal(10, seed=3)
    broken = default - 1
    broken[3] = torch.inf
    assert one_standard_error(torch.stack([default, broken]), simplicity=[0, 1]) == 0
    assert not not_worse(broken, default)
    with pytest.raises(ValueError, match="the default's losses are not finite"):
        one_standard_error(torch.stack([broken, default]), simplicity=[0, 1])


def test_the_largest_free_amount_stops_at_the_first_that_costs() -> None:
    reference = normal(100, seed=3)
    read = []

    def costs():
        for amount, cost in ((0.1, 0.0034), (0.2, 0.0036), (0.3, -1.0)):
            read.append(amount)
            yield amount, reference + exact(cost, 0.001)

    assert largest_free(costs(), reference) == 0.1  # 1.5 standard errors on top, of 100 rows, reach 0.005
    assert read == [0.1, 0.2]
    assert largest_free(costs(), reference, standard_errors=1.3) == 0.3
    assert largest_free(costs(), reference, worthwhile=0.0052) == 0.3
    assert largest_free([(0.1, reference + 1)], reference) == 0.0


@pytest.mark.parametrize(("rows", "free"), [(20, False), (2000, True)])
def test_rows_that_are_too_few_to_see_a_cost_free_nothing(rows: int, free: bool) -> None:
    """A lower loss by luck, too small to be one: not worse within any standard error, and yet not shown to be free."""
    reference = normal(rows, seed=3)
    losses = reference - 0.001 + exact(0.0, 0.1 / math.sqrt(rows), rows)
    assert not_worse(losses, reference)
    assert is_free(losses, reference) is free
    assert not is_free(torch.full((rows,), torch.inf), reference)


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        (torch.zeros(2, 1), {"simplicity": [0, 1]}, "at least two"),
        (torch.zeros(3), {"simplicity": [0]}, r"need losses \(K, N\)"),
        (torch.zeros(2, 3), {"simplicity": [0]}, "K keys"),
        (torch.zeros(2, 3), {"simplicity": [0, 1], "default": 2}, "default below K"),
        (torch.zeros(2, 3), {"simplicity": [0, 1], "standard_errors": -1.0}, "standard_errors is -1.0"),
        (torch.zeros(2, 3), {"simplicity": [0, 1], "standard_errors": math.nan}, "standard_errors is nan"),
        (torch.zeros(2, 3), {"simplicity": [0, 1], "worthwhile": -0.1}, "worthwhile is -0.1"),
    ],
)
def test_misuse(losses: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_standard_error(losses, **options)
    with pytest.raises(ValueError, match="the same rows"):
        paired_error(torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize(("standard_errors", "rate"), [(1.0, 0.159), (2.0, 0.023)])
def test_how_often_luck_passes(standard_errors: float, rate: float) -> None:
    """One alternative that is in truth as good: as often as a normal variable is that many deviations below 0."""
    default, noise = normal(2000, 100, seed=4), normal(2000, 100, seed=5)
    left = [
        one_standard_error(torch.stack([a, a + b]), simplicity=[0, 1], standard_errors=standard_errors)
        for a, b in zip(default, noise, strict=True)
    ]
    assert sum(left) / 2000 == pytest.approx(rate, abs=3 * math.sqrt(rate * (1 - rate) / 2000))


def test_few_rows_need_two_standard_errors_and_many_one() -> None:
    asked = [standard_errors_for(rows) for rows in range(1, 2000)]
    assert asked[:50] == [2.0] * 50
    assert all(0 <= before - after <= 0.02 for before, after in pairwise(asked))  # no cliff
    assert asked[-1] < 1.03
    with pytest.raises(ValueError, match="0 rows and"):
        standard_errors_for(0)
    with pytest.raises(ValueError, match="10 rows and 0 candidates decide nothing"):
        standard_errors_for(10, candidates=0)


def test_the_best_of_several_needs_more() -> None:
    """The luckiest of M independent candidates passes as seldom as a single one would."""
    one, of_ten = (stats.t.sf(standard_errors_for(30, candidates), 29) for candidates in (1, 10))
    assert of_ten == pytest.approx(one / 10)
    assert independent(normal(6, 400), torch.zeros(400)) == pytest.approx(6, abs=0.2)
    copies = normal(1, 400) * torch.tensor([[1.0], [2.0], [-3.0]]) + 1
    assert independent(copies, torch.zeros(400)) == pytest.approx(1)
    without = torch.cat([normal(2, 400), torch.zeros(1, 400), torch.full((1, 400), torch.inf)])
    assert independent(without, torch.zeros(400)) == pytest.approx(independent(without[:2], torch.zeros(400)))


@pytest.mark.parametrize("copies", [False, True])
def test_how_often_the_luckiest_of_eight_passes(copies: bool) -> None:
    """40 rows, and eight alternatives that are in truth as good: at most as often as one alternative would."""
    left, rate = 0, 0.026  # of Student's t with 39, below −2
    for noise in normal(1000, 8, 40, seed=6):
        noise = noise[:1] + 0.01 * noise if copies else noise
        losses = torch.cat([torch.zeros(1, 40, dtype=torch.float64), noise])
        left += one_standard_error(losses, simplicity=range(9)) != 0
    assert left / 1000 <= rate + 3 * math.sqrt(rate * (1 - rate) / 1000)
    assert left > 0


def test_a_gain_that_is_sure_and_not_worth_it_is_not_taken() -> None:
    """The draws that were written into posterior.json for 1e-4 nat."""
    default = normal(1000, seed=3)
    small, large = default + exact(-0.9 * WORTHWHILE, 1e-5, 1000), default + exact(-1.1 * WORTHWHILE, 1e-5, 1000)
    assert one_standard_error(torch.stack([default, small]), simplicity=[0, 1]) == 0
    assert one_standard_error(torch.stack([default, small]), simplicity=[0, 1], worthwhile=0.0) == 1
    assert one_standard_error(torch.stack([default, small, large]), simplicity=[0, 1, 2]) == 2

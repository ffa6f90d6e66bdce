"""The interval of a bounded mean: it covers what it says, also where the rare value has not been seen."""

from __future__ import annotations

import pytest
import torch

from varlora.metrics import clopper_pearson
from varlora.metrics.bounded_mean import bounded_mean_interval


@pytest.mark.parametrize(("share", "dear", "rows"), [(0.02, 1.0, 60), (0.3, 1.0, 60), (0.1, 0.2, 200)])
def test_it_covers_the_mean(share: float, dear: float, rows: int) -> None:
    """200 draws: 5 % and three standard errors are 9.6 %."""
    generator = torch.Generator().manual_seed(rows)
    draws = dear * (torch.rand(200, rows, generator=generator) < share).double()
    missed = 0
    for values in draws:
        low, high = bounded_mean_interval(values)
        missed += not low <= share * dear <= high
    assert missed / 200 <= 0.096


def test_rows_that_are_sorted_by_their_class_do_no_harm() -> None:
    values = (torch.rand(150, generator=torch.Generator().manual_seed(0)) < 0.3).double().sort().values
    low, high = bounded_mean_interval(values)
    assert low < 0.3 < high


def test_it_is_little_wider_than_the_exact_interval_of_a_share() -> None:
    values = torch.zeros(400)
    values[::20] = 1
    low, high = bounded_mean_interval(values)
    exact = clopper_pearson(20, 400)
    assert exact[1] - exact[0] < high - low < 1.6 * (exact[1] - exact[0])
    assert low < 0.05 < high


def test_bounds_scale_the_interval() -> None:
    values = (torch.arange(50) % 7 == 0).double()
    low, high = bounded_mean_interval(values)
    scaled = bounded_mean_interval(10 + 5 * values, low=10, high=15)
    assert scaled == (pytest.approx(10 + 5 * low), pytest.approx(10 + 5 * high))
    assert bounded_mean_interval(values, level=0.5)[1] < high


def test_edges() -> None:
    assert bounded_mean_interval(torch.tensor([3.0]), low=3, high=3) == (3, 3)
    low, high = bounded_mean_interval(torch.ones(1))
    assert (low, high) == (0.0, 1.0)
    assert bounded_mean_interval(torch.ones(1000))[1] == 1
    for values, options, message in (
        (torch.zeros(0), {}, "n at least 1"),
        (torch.tensor([2.0]), {}, "not within 0.0 and 1.0"),
        (torch.tensor([float("nan")]), {}, "not within"),
        (torch.zeros(2), {"level": 1.0}, "level is 1.0"),
        (torch.zeros(2), {"low": 2.0}, "the bounds are 2.0 and 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            bounded_mean_interval(values, **options)

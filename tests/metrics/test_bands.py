"""Bands of confidence: measured where cuts are given, guaranteed where accuracies are."""

from __future__ import annotations

import math

import pytest
import torch

from varlora.metrics import clopper_pearson
from varlora.metrics.bands import bands_at, bands_for_accuracies, in_bands

NAMES = ("high", "medium", "low")


def test_given_cuts_are_measured() -> None:
    sure = torch.linspace(1, 0, 101, dtype=torch.float64)
    correct = torch.arange(101) % 4 != 0
    bands = bands_at(sure, correct, NAMES, (0.895, 0.5))
    assert [(band.rows, band.right) for band in bands] == [(11, 8), (40, 30), (50, 37)]
    assert bands[1].interval == clopper_pearson(30, 40)
    assert [in_bands(sure, bands).count(name) for name in NAMES] == [11, 40, 50]
    assert in_bands(torch.tensor([-5.0, 7.0]), bands) == ["low", "high"]


def test_every_band_keeps_its_promise_but_for_delta() -> None:
    """The accuracy falls with the sureness, so that bands are cut close to what is promised."""
    generator = torch.Generator().manual_seed(0)
    failed, used = 0, 0
    for _ in range(300):
        sure = torch.rand(1200, generator=generator, dtype=torch.float64)
        correct = torch.rand(1200, generator=generator) < 0.6 + 0.4 * sure
        high, medium, low = bands_for_accuracies(sure, correct, NAMES, (0.9, 0.7), delta=0.2)
        assert math.isinf(low.cut)
        promises, above = [], 1.0
        for band in (high, medium):
            if band.rows:
                used += 1
                cut = max(0.0, band.cut)
                promises.append(0.6 + 0.4 * (above + cut) / 2 >= band.wanted)  # type: ignore[operator]
                above = cut
        failed += not all(promises)
    assert used > 500  # the promises were given
    assert failed / 300 <= 0.2


def test_tied_rows_are_judged_with_the_band_that_they_are_in() -> None:
    """Half of the second level's answers are right; the third's alone would keep the promise."""
    generator = torch.Generator().manual_seed(0)
    accuracy = torch.tensor([1.0, 0.5, 1.0, 0.3, 0.3])
    level = torch.arange(1000) % 5
    correct = torch.rand(1000, generator=generator) < accuracy[level]
    high, medium, low = bands_for_accuracies(-level.double(), correct, NAMES, (0.95, 0.8))
    assert (high.rows, medium.rows, low.rows) == (200, 0, 800)


def test_a_promise_that_no_rows_can_keep_makes_an_empty_band() -> None:
    sure = torch.linspace(1, 0, 400)
    correct = torch.arange(400) % 10 != 0
    high, medium, low = bands_for_accuracies(sure, correct, NAMES, (0.99, 0.8))
    assert (high.rows, high.cut) == (0, math.inf)
    assert (medium.rows, low.rows) == (400, 0)
    bands = bands_for_accuracies(sure[:5], correct[:5], NAMES, (0.99, 0.8))
    assert [band.rows for band in bands] == [0, 0, 5]
    assert in_bands(sure[:5], bands) == ["low"] * 5
    assert [band.rows for band in bands_for_accuracies(sure[:1], correct[:1], NAMES, (0.9, 0.5))] == [0, 0, 1]
    tied = bands_for_accuracies(torch.full((400,), 0.5), correct, NAMES, (0.8, 0.7))
    assert [band.rows for band in tied] == [400, 0, 0]  # all or none of what is tied


@pytest.mark.parametrize(
    ("names", "cuts", "message"),
    [
        (NAMES, (0.5, 0.9), "they must fall"),
        (NAMES, (0.5, 0.5), "they must fall"),
        (NAMES, (0.5, math.nan), "they must fall"),
        (NAMES, (0.5,), "3 bands and 1 numbers"),
        (("high", "high"), (0.5,), "two bands have one name"),
    ],
)
def test_misuse(names: tuple[str, ...], cuts: tuple[float, ...], message: str) -> None:
    sure, correct = torch.linspace(0, 1, 9), torch.ones(9)
    with pytest.raises(ValueError, match=message):
        bands_at(sure, correct, names, cuts)
    with pytest.raises(ValueError, match=message):
        bands_for_accuracies(sure, correct, names, cuts)


def test_accuracies_are_shares() -> None:
    with pytest.raises(ValueError, match="between 1 and 0"):
        bands_for_accuracies(torch.ones(3), torch.ones(3), ("high", "low"), (1.0,))

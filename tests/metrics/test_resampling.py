import math

import pytest
import torch
from scipy import stats

from varlora.metrics import (
    auroc,
    bootstrap,
    clopper_pearson,
    expected_calibration_error,
    maximum_calibration_error,
)


def mean(x):
    return x.mean(-1)


def bootstrap_interval(metric, *examples, **options):
    return bootstrap(lambda i: {"metric": metric(*(x[i] for x in examples))}, len(examples[0]), **options)["metric"]


def test_interval_of_a_mean_has_its_textbook_width():
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interval = bootstrap_interval(mean, x, resamples=4000)
    half_width = 1.96 * float(x.std(correction=0)) / math.sqrt(2000)
    assert interval.low == pytest.approx(float(x.mean()) - half_width, abs=0.1 * half_width)
    assert interval.high == pytest.approx(float(x.mean()) + half_width, abs=0.1 * half_width)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_covers_the_truth_as_often_as_it_says(level):
    """400 test sets of 100 coin flips: the interval of the mean holds the coin's p in `level` of them."""
    generator = torch.Generator().manual_seed(1)
    flips = (torch.rand(400, 100, generator=generator) < 0.7).double()
    intervals = [bootstrap_interval(mean, x, resamples=400, level=level, seed=i) for i, x in enumerate(flips)]
    covered = sum(i.low <= 0.7 <= i.high for i in intervals) / 400
    assert abs(covered - level) < 3.5 * math.sqrt(level * (1 - level) / 400) + 0.01


def test_calibration_errors_are_recomputed_on_each_resample():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(80, generator=generator, dtype=torch.float64)
    correct = torch.rand(80, generator=generator) < confidence
    indices = torch.randint(80, (40, 80), generator=torch.Generator().manual_seed(9))
    for metric in (expected_calibration_error, maximum_calibration_error):
        interval = bootstrap_interval(metric, confidence, correct, resamples=40, seed=9)
        values = sorted(float(metric(confidence[i], correct[i])) for i in indices)
        assert (interval.low, interval.high) == pytest.approx((values[0], values[-1]), abs=1e-12)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    x = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at_once = bootstrap_interval(mean, x, resamples=101)
    monkeypatch.setattr("varlora.metrics.resampling.BLOCK_NUMBERS", 7 * 50)
    assert bootstrap_interval(mean, x, resamples=101) == at_once


def test_paired_interval_is_narrower_where_methods_err_together():
    generator = torch.Generator().manual_seed(0)
    hardness = torch.randn(500, generator=generator, dtype=torch.float64)
    first = hardness + 0.1 * torch.randn(500, generator=generator, dtype=torch.float64)
    second = hardness + 0.1 * torch.randn(500, generator=generator, dtype=torch.float64) + 0.1
    paired = bootstrap(lambda i: {"mean": mean(first[i]) - mean(second[i])}, 500)["mean"]
    a, b = bootstrap_interval(mean, first, seed=1), bootstrap_interval(mean, second, seed=2)
    unpaired_width = math.hypot(a.high - a.low, b.high - b.low)
    assert paired.high - paired.low < 0.2 * unpaired_width
    # Close to the interval of the mean of the differences, which is what pairing means.
    of_differences = bootstrap_interval(mean, first - second)
    assert (paired.low, paired.high) == pytest.approx((of_differences.low, of_differences.high))
    assert paired.high < 0  # while the unpaired intervals overlap:
    assert a.high > b.low


def test_undefined_resamples_are_left_out():
    # One error in five: about a third of the resamples have none.
    score, wrong = torch.tensor([0.9, 0.1, 0.2, 0.3, 0.4]), torch.tensor([1, 0, 0, 0, 0])
    interval = bootstrap_interval(auroc, score, wrong)
    assert (interval.estimate, interval.low, interval.high) == (1, 1, 1)
    undefined = bootstrap_interval(auroc, score, torch.zeros(5))
    assert math.isnan(undefined.estimate)
    assert math.isnan(undefined.low)


def test_seeds_repeat_and_global_randomness_is_left_alone():
    x = torch.arange(30.0, dtype=torch.float64)
    before = torch.get_rng_state()
    assert bootstrap_interval(mean, x, seed=1) == bootstrap_interval(mean, x, seed=1)
    assert bootstrap_interval(mean, x, seed=1) != bootstrap_interval(mean, x, seed=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_refused_with_a_reason():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="take 40 at least"):
        bootstrap_interval(mean, x, resamples=39)
    with pytest.raises(ValueError, match="level is 95"):
        bootstrap_interval(mean, x, level=95)
    with pytest.raises(ValueError, match="no examples"):
        bootstrap_interval(mean, torch.zeros(0))


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (3, 5), (190, 200), (1, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_exact_interval_is_scipys(successes, trials, level):
    expected = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    assert clopper_pearson(successes, trials, level=level) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_trials_say_nothing():
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_an_interval_of_more_successes_than_trials_is_refused():
    with pytest.raises(ValueError, match="3 of 2"):
        clopper_pearson(3, 2)
    with pytest.raises(ValueError, match="at level 1"):
        clopper_pearson(1, 2, level=1.0)

"""Which rows are answered, at a wanted coverage."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from scipy import stats

from varlora.metrics import (
    accuracy_at_coverage,
    answered_metrics,
    conformal_rank,
    mutual_information,
    predictive_entropy,
    risk_coverage,
    sureness,
    threshold_for_coverage,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sureness_orders_as_its_measure_does() -> None:
    log_probs = normal(40, 6, 3).log_softmax(-1)
    assert sureness(log_probs).tolist() == pytest.approx(log_probs.exp().mean(1).max(-1).values.tolist())
    assert torch.equal(sureness(log_probs, "entropy"), -predictive_entropy(log_probs))
    assert torch.equal(sureness(log_probs, "mutual_information"), -mutual_information(log_probs))


def test_choices_that_are_not_offered_leave_sureness_finite() -> None:
    log_probs = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]], dtype=torch.float64).log()
    for by in ("confidence", "entropy", "mutual_information"):
        assert bool(sureness(log_probs, by).isfinite().all())  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "coverage"), [(9, "0.9"), (50, "0.9"), (149, "0.82"), (30, "0.5"), (200, "0.95")])
def test_new_rows_are_answered_as_often_as_promised(n: int, coverage: str) -> None:
    """Over fresh rows, the share answered is the beta-binomial's: mean k/(n + 1), whatever the scores."""
    splits, new = 1500, 200
    rank = conformal_rank(n, 1 - Fraction(coverage))
    sure = normal(splits, n + new, seed=n).exp()
    shares = torch.tensor(
        [answered_metrics(row[n:] >= threshold_for_coverage(row[:n], coverage).value)["share_answered"] for row in sure]
    )
    expected = stats.betabinom(new, rank, n + 1 - rank)
    assert threshold_for_coverage(sure[0, :n], coverage).expected == pytest.approx(rank / (n + 1))
    assert float(shares.mean()) == pytest.approx(
        expected.mean() / new, abs=4 * expected.std() / new / math.sqrt(splits)
    )
    assert float(shares.std()) == pytest.approx(expected.std() / new, rel=0.1)
    assert rank / (n + 1) >= float(Fraction(coverage))


def test_ties_answer_more() -> None:
    sure = torch.tensor([0.9] * 30 + [0.6] * 69)
    found = threshold_for_coverage(sure, "0.5")
    assert found.value == pytest.approx(0.6)
    assert answered_metrics(sure >= found.value)["share_answered"] == 1


def test_the_threshold_is_an_order_statistic() -> None:
    sure = torch.arange(1.0, 150.0)[torch.randperm(149, generator=torch.Generator().manual_seed(0))]
    found = threshold_for_coverage(sure, "0.82")
    assert (found.value, found.rows, found.coverage) == (27.0, 149, 0.82)  # the 123rd from above
    assert found.low < 0.82 < found.high


@pytest.mark.parametrize("n", range(1, 9))
def test_too_few_rows_answer_everything_and_say_so(n: int) -> None:
    found = threshold_for_coverage(torch.rand(n), 0.9)
    assert (found.value, found.expected, found.low) == (-math.inf, 1.0, 1.0)
    assert found.sentence == f"Every row is answered: {n} rows are too few to leave any out at 90 % (9 would do)."
    assert "nothing less covers 100 %" in threshold_for_coverage(torch.rand(n), 1).sentence


def test_what_is_promised_is_said() -> None:
    assert threshold_for_coverage(torch.rand(99), 0.9).sentence == (
        "At least 90 % of new rows like these 99 are answered, on average over which 99 were drawn; 95 % of such draws "
        "give 83.4 to 95.0 %, more where scores are tied."
    )


def test_metrics_are_those_of_the_risk_coverage_curve() -> None:
    sure, correct = normal(60, seed=1), normal(60, seed=2) > -0.5
    coverage, risk = risk_coverage(sure, correct)
    for k in (1, 30, 59, 60):
        threshold = sure.sort(descending=True).values[k - 1]
        found = answered_metrics(sure >= threshold, correct)
        assert found["share_answered"] == pytest.approx(float(coverage[k - 1]))
        assert found["accuracy"] == pytest.approx(1 - float(risk[k - 1]))
        assert found["accuracy"] == pytest.approx(float(accuracy_at_coverage(sure, correct, coverage=k / 60)))
        assert found["accuracy_of_all"] == pytest.approx(1 - float(risk[-1]))
        interval = stats.binomtest(round(found["accuracy"] * k), k).proportion_ci(method="exact")
        assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((interval.low, interval.high))


def test_nothing_answered() -> None:
    found = answered_metrics(torch.zeros(3).bool(), torch.ones(3).bool())
    assert math.isnan(found["accuracy"])
    assert (found["answered"], found["accuracy_low"], found["accuracy_high"]) == (0, 0.0, 1.0)
    assert answered_metrics(torch.tensor([True, False])).keys() == {"rows", "answered", "share_answered"}


def test_misuse() -> None:
    with pytest.raises(ValueError, match="allowed: confidence, entropy, mutual_information"):
        sureness(torch.zeros(2, 2, 1), "margin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"give \(N, S, C\)"):
        sureness(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="predict with several draws"):
        sureness(torch.zeros(2, 1, 2), "mutual_information")
    with pytest.raises(ValueError, match="coverage is 0"):
        threshold_for_coverage(torch.rand(9), 0)
    with pytest.raises(ValueError, match="1 of them NaN"):
        threshold_for_coverage(torch.tensor([0.1, math.nan]), 0.9)
    with pytest.raises(ValueError, match="give bool"):
        answered_metrics(torch.zeros(0).bool())
    with pytest.raises(ValueError, match="answered has shape"):
        answered_metrics(torch.zeros(2).bool(), torch.zeros(3))

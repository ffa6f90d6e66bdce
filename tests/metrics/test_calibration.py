import math

import pytest
import torch

from varlora.metrics import (
    confidence_and_correct,
    equal_mass_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
)


def test_agrees_with_the_oracle(classified):
    probs, labels, expected = classified
    confidence, correct = confidence_and_correct(probs, labels)
    for bins in (10, 15, 20):
        values = {
            f"ece_{bins}": float(expected_calibration_error(confidence, correct, bins=bins)),
            f"mce_{bins}": float(maximum_calibration_error(confidence, correct, bins=bins)),
            f"adaptive_ece_{bins}": float(equal_mass_calibration_error(confidence, correct, bins=bins)),
        }
        assert values == pytest.approx({name: expected[name] for name in values}, abs=1e-9, rel=0)


def test_agrees_with_the_oracle_on_bin_edges(on_bin_edges):
    probs, labels, expected = on_bin_edges
    confidence, correct = confidence_and_correct(probs, labels)
    for bins in (2, 4, 8, 10):
        values = {
            f"ece_{bins}": float(expected_calibration_error(confidence, correct, bins=bins)),
            f"mce_{bins}": float(maximum_calibration_error(confidence, correct, bins=bins)),
        }
        assert values == pytest.approx({name: expected[name] for name in values}, abs=1e-9, rel=0)


@pytest.mark.parametrize(("norm", "metric"), [("l1", expected_calibration_error), ("max", maximum_calibration_error)])
def test_agrees_with_torchmetrics_off_the_edges(classified, norm, metric):
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes a second

    probs, labels, _ = classified
    theirs = multiclass_calibration_error(probs, labels, num_classes=probs.shape[-1], n_bins=15, norm=norm)
    assert float(metric(*confidence_and_correct(probs, labels))) == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("bins", [1, 3, 7, 10, 15, 20, 100])
def test_every_edge_belongs_to_the_bin_below(bins):
    edges = torch.tensor([k / bins for k in range(bins + 1)], dtype=torch.float64)
    counts = [b.count for b in reliability_bins(edges, torch.ones(bins + 1), bins=bins)]
    assert counts == [2] + [1] * (bins - 1)  # 0 shares the first bin with 1/B
    above = torch.nextafter(edges[:-1], torch.tensor(1.0, dtype=torch.float64))
    assert [b.count for b in reliability_bins(above, torch.ones(bins), bins=bins)] == [1] * bins


def test_decimal_confidences_fall_where_they_are_written():
    for k in range(1, 11):
        confidence = torch.tensor([float(f"0.{k}") if k < 10 else 1.0], dtype=torch.float64)
        (filled,) = [i for i, b in enumerate(reliability_bins(confidence, torch.ones(1), bins=10)) if b.count]
        assert filled == k - 1


def test_reliability_bins_carry_the_error(classified):
    probs, labels, expected = classified
    bins = reliability_bins(*confidence_and_correct(probs, labels), bins=15)
    assert sum(b.count for b in bins) == len(labels)
    assert [(b.lower, b.upper) for b in bins] == [(i / 15, (i + 1) / 15) for i in range(15)]
    full = [b for b in bins if b.count]
    assert all(b.lower < b.confidence <= b.upper for b in full)
    ece = sum(b.count / len(labels) * abs(b.accuracy - b.confidence) for b in full)
    assert ece == pytest.approx(expected["ece_15"], abs=1e-9)
    assert max(abs(b.accuracy - b.confidence) for b in full) == pytest.approx(expected["mce_15"], abs=1e-9)
    empty = [b for b in bins if not b.count]
    assert empty
    assert all(math.isnan(b.confidence) and math.isnan(b.accuracy) for b in empty)


def test_equal_mass_groups_differ_by_one_at_most():
    # Seven examples in three groups: 3, 2, 2.
    confidence = torch.tensor([0.7, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64)
    correct = torch.tensor([1, 0, 0, 1, 0, 1, 0])
    by_hand = (abs(1 - 0.6) + abs(1 - 0.9) + abs(1 - 1.3)) / 7
    assert float(equal_mass_calibration_error(confidence, correct, bins=3)) == pytest.approx(by_hand)


def test_more_equal_mass_bins_than_examples_are_one_bin_each():
    confidence, correct = torch.tensor([0.75, 0.25]), torch.tensor([1, 1])
    assert float(equal_mass_calibration_error(confidence, correct, bins=15)) == 0.5


def test_rounding_above_one_is_the_last_bin():
    bins = reliability_bins(torch.tensor([1 + 1e-12], dtype=torch.float64), torch.ones(1), bins=10)
    assert bins[-1].count == 1


@pytest.mark.parametrize(
    "metric", [expected_calibration_error, maximum_calibration_error, equal_mass_calibration_error]
)
def test_leading_dimensions_are_a_batch(metric, classified):
    probs, labels, _ = classified
    confidence, correct = confidence_and_correct(probs, labels)
    batched = metric(confidence.unflatten(0, (4, 100)), correct.unflatten(0, (4, 100)))
    one_by_one = [metric(p, y) for p, y in zip(confidence.split(100), correct.split(100), strict=True)]
    assert batched.tolist() == pytest.approx([float(x) for x in one_by_one], abs=1e-15)


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        ([0.5], [1], 0, "bins is 0"),
        ([], [], 15, "no examples"),
        ([0.5, 0.5], [1], 15, "same shape"),
        ([1.5], [1], 15, "probabilities"),
        ([math.nan], [1], 15, "NaN"),
        ([0.5], [2], 15, "booleans"),
    ],
)
def test_refused_with_a_reason(confidence, correct, bins, message):
    for metric in (expected_calibration_error, maximum_calibration_error, equal_mass_calibration_error):
        with pytest.raises(ValueError, match=message):
            metric(torch.tensor(confidence), torch.tensor(correct), bins=bins)


def tied(confidence: list[float], correct: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(confidence, dtype=torch.float64), torch.tensor(correct)


def test_equal_mass_bins_do_not_depend_on_the_order_of_equally_confident_rows():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.randint(3, 11, (100,), generator=generator).double() / 10
    correct = torch.rand(100, generator=generator) < 0.6
    orders = [torch.arange(100), correct.int().argsort(), (~correct).int().argsort()]
    orders += [torch.randperm(100, generator=generator) for _ in range(5)]
    assert len({float(equal_mass_calibration_error(confidence[o], correct[o])) for o in orders}) == 1


def test_equally_confident_rows_share_their_right_answers_over_the_bins_they_fall_into():
    right_first = tied([0.7] * 20, [1] * 14 + [0] * 6)
    assert float(equal_mass_calibration_error(*right_first)) == pytest.approx(0, abs=1e-15)
    # Three of .75, two of them right, over two bins of two: each counts two thirds.
    by_hand = (abs(1 - 0.5 + 2 / 3 - 0.75) + abs(2 * (2 / 3 - 0.75))) / 4
    assert float(equal_mass_calibration_error(*tied([0.75, 0.5, 0.75, 0.75], [1, 1, 0, 1]), bins=2)) == pytest.approx(
        by_hand
    )

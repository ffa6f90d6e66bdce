import logging
import math

import pytest
import torch
from scipy import stats

from varlora.metrics import compare, evaluate, evaluate_with_intervals, expected_calibration_error
from varlora.metrics.resampling import clopper_pearson

# Our key: the oracle's.
NAMES = {
    **{name: name for name in ("accuracy", "nll", "brier", "ece_10", "ece_15", "ece_20", "mce_15")},
    "classwise_ece_15": "classwise_ece_15",
    "ece_15_equal_mass": "adaptive_ece_15",
    "aurc": "aurc",
    "auroc_errors": "auroc_confidence",
}


def random_predictions(num_examples=300, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_examples, num_classes, generator=generator, dtype=torch.float64)
    log_probs = logits.log_softmax(-1)
    return log_probs, torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(-1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("as_logs", [False, True], ids=["probs", "log_probs"])
def test_agrees_with_the_oracle(classified, dtype, tolerance, as_logs):
    probs, labels, expected = classified
    predictions = probs.to(dtype).log() if as_logs else probs.to(dtype)
    metrics = evaluate(predictions, labels)
    assert {name: metrics[name] for name in NAMES} == pytest.approx(
        {name: expected[other] for name, other in NAMES.items()}, abs=tolerance, rel=0
    )
    coverages = {percent: metrics[f"accuracy_at_{percent}"] for percent in ("80", "90", "95")}
    assert coverages == pytest.approx(expected["accuracy_at_coverage"], abs=1e-9)


def test_samples_are_averaged_as_probabilities(samples_of_oracle):
    log_probs, labels, expected = samples_of_oracle
    metrics = evaluate(log_probs, labels)
    assert metrics["nll"] == pytest.approx(expected["nll_of_mean"], abs=1e-9)
    for name in ("predictive_entropy", "expected_entropy", "mutual_information"):
        assert metrics[name] == pytest.approx(sum(expected[name]) / len(labels), abs=1e-9)
    of_mean = evaluate(log_probs.exp().mean(1), labels)
    assert set(metrics) - set(of_mean) == {"expected_entropy", "mutual_information"}
    assert {name: metrics[name] for name in of_mean} == pytest.approx(of_mean, abs=1e-12)


def test_temperature_cases_with_missing_choices(tempered):
    logits, labels, expected = tempered
    before = evaluate(logits.log_softmax(-1), labels)
    after = evaluate((logits / expected["t_opt"]).log_softmax(-1), labels)
    for name in ("nll", "ece_15"):
        assert before[name] == pytest.approx(expected[f"{name}_before"], abs=1e-9)
        assert after[name] == pytest.approx(expected[f"{name}_after"], abs=1e-9)


def test_order_of_examples_and_copies_of_a_sample_change_nothing():
    log_probs, labels = random_predictions()
    metrics = evaluate(log_probs, labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert evaluate(log_probs[order], labels[order]) == pytest.approx(metrics, abs=1e-12)
    copies = evaluate(log_probs.unsqueeze(1).expand(-1, 3, -1), labels)
    assert copies.pop("mutual_information") == pytest.approx(0, abs=1e-12)
    assert copies.pop("expected_entropy") == pytest.approx(metrics["predictive_entropy"])
    assert copies == pytest.approx(metrics, abs=1e-12)


def test_relabelled_classes_change_nothing():
    log_probs, labels = random_predictions()
    order = torch.tensor([2, 0, 3, 1])
    assert evaluate(log_probs[:, order], order.argsort()[labels]) == pytest.approx(
        evaluate(log_probs, labels), abs=1e-12
    )


def test_probabilities_are_binned_as_given():
    # 0.6 is an edge of ten bins; exp(log(0.6)) is above it.
    probs = torch.tensor([[0.6, 0.4], [0.59, 0.41]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    assert evaluate(probs, labels)["ece_10"] == pytest.approx(abs(0.5 - 0.595))


def test_a_tiny_probability_given_as_log_is_not_lost():
    log_probs = torch.tensor([[0.0, -800.0]], dtype=torch.float64)
    assert evaluate(log_probs, torch.tensor([1]))["nll"] == 800
    assert evaluate(log_probs.unsqueeze(1), torch.tensor([1]))["nll"] == 800


def test_impossible_label_is_infinitely_bad_and_said_so(caplog):
    probs = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    with caplog.at_level(logging.WARNING):
        metrics = evaluate(probs, torch.tensor([1, 0]))
    assert metrics["nll"] == math.inf
    assert "1 of 2 labels have probability 0" in caplog.text
    assert all(math.isfinite(value) for name, value in metrics.items() if name != "nll")
    interval = evaluate_with_intervals(probs, torch.tensor([1, 0]))["nll"]
    assert (interval.low, interval.high) == (math.log(2), math.inf)


def test_auroc_of_errors_is_undefined_without_errors():
    metrics = evaluate(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1]))
    assert [name for name, value in metrics.items() if math.isnan(value)] == ["auroc_errors"]


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([[2.0, -1.0]], [0], "log_softmax"),
        ([[3.0, 1.0]], [0], "a row sums to 4"),
        ([[0.5, 0.4]], [0], r"read as probabilities .* a row sums to 0\.9"),
        ([[-0.1, -0.2]], [0], "read as log-probabilities"),
        ([[[0.5, 0.5]]], [0], "read as log-probabilities"),
        ([[math.nan, 0.5]], [0], "1 values that are NaN"),
        ([[math.inf, 0.5]], [0], r"\+inf"),
        ([0.5, 0.5], [0, 1], "shape"),
        ([[0.5, 0.5]], [0, 1], "labels have shape"),
        ([[0.5, 0.5]] * 3, [0, -100, -1], "2 of 3 labels are unknown"),
        ([[0.5, 0.5]], [2], "a label is 2"),
        ([[0.5, 0.5]], [1.0], "class indices"),
    ],
)
def test_refused_with_a_reason(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate(torch.tensor(predictions), torch.tensor(labels))


def test_no_examples_and_half_precision_are_refused():
    with pytest.raises(ValueError, match="none of N, S and C being 0"):
        evaluate(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="bfloat16"):
        evaluate(torch.tensor([[0.5, 0.5]], dtype=torch.bfloat16), torch.tensor([0]))


def test_intervals_are_around_the_estimates_of_evaluate():
    log_probs, labels = random_predictions()
    intervals = evaluate_with_intervals(log_probs, labels, resamples=200, seed=3)
    estimates = {name: interval.estimate for name, interval in intervals.items()}
    assert estimates == pytest.approx(evaluate(log_probs, labels), abs=1e-12)
    for name in ("accuracy", "nll", "brier", "predictive_entropy", "aurc", "accuracy_at_80", "auroc_errors"):
        assert intervals[name].low < intervals[name].estimate < intervals[name].high
    assert intervals == evaluate_with_intervals(log_probs, labels, resamples=200, seed=3)
    assert intervals != evaluate_with_intervals(log_probs, labels, resamples=200, seed=4)


def test_resampled_metrics_are_the_metrics_of_the_resample():
    """The vectorised bootstrap equals `evaluate` called on each resample."""
    log_probs, labels = random_predictions(num_examples=60)
    order = log_probs.amax(-1).argsort(stable=True)
    log_probs, labels = log_probs[order], labels[order]
    intervals = evaluate_with_intervals(log_probs, labels, resamples=40, seed=5)
    indices = torch.randint(60, (40, 60), generator=torch.Generator().manual_seed(5))
    one_by_one = [evaluate(log_probs[i], labels[i]) for i in indices]
    for name, interval in intervals.items():
        values = sorted(metrics[name] for metrics in one_by_one)
        expected = values[0], values[-1]
        if name == "confident_errors":  # of which there are none, so that resamples tell no width
            assert expected == (0, 0)
            expected = clopper_pearson(0, 60)
        assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12)


def test_comparison_with_itself_is_zero_and_with_a_worse_method_is_signed():
    log_probs, labels = random_predictions()
    same = compare(log_probs, log_probs, labels, resamples=100)
    assert {(i.estimate, i.low, i.high) for i in same.values()} == {(0.0, 0.0, 0.0)}
    overconfident = (3 * log_probs).log_softmax(-1)
    difference = compare(log_probs, overconfident, labels, resamples=200)
    assert difference["accuracy"].low == difference["accuracy"].high == 0
    assert difference["nll"].high < 0
    assert difference["ece_15"].high < 0
    reverse = compare(overconfident, log_probs, labels, resamples=200)["nll"]
    assert (reverse.low, reverse.high) == pytest.approx((-difference["nll"].high, -difference["nll"].low))


def test_comparison_averages_the_metrics_of_runs():
    runs = [random_predictions(seed=seed)[0] for seed in range(3)]
    other, labels = random_predictions(seed=7)
    difference = compare(runs, other, labels, resamples=100)
    of_runs = [evaluate(run, labels) for run in runs]
    for name, value in evaluate(other, labels).items():
        expected = sum(metrics[name] for metrics in of_runs) / 3 - value
        assert difference[name].estimate == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="no predictions"):
        compare([], other, labels)


def test_only_shared_metrics_are_compared():
    log_probs, labels = random_predictions()
    assert "mutual_information" not in compare(log_probs.unsqueeze(1), log_probs, labels, resamples=40)


def test_calibration_error_of_calibrated_predictions_lies_low_in_its_interval():
    """The bias that resampling.py warns of: resampling can only widen the gaps of calibrated bins."""
    log_probs, labels = random_predictions(num_examples=2000)
    ece = evaluate_with_intervals(log_probs, labels, resamples=200)["ece_15"]
    assert ece.high - ece.estimate > 2 * (ece.estimate - ece.low)
    confidence, answer = log_probs.exp().max(-1)
    assert ece.estimate == float(expected_calibration_error(confidence, answer == labels))


@pytest.mark.parametrize(
    ("right", "name", "rows"), [(True, "accuracy", 12), (False, "accuracy", 12), (True, "accuracy_at_80", 10)]
)
def test_a_share_without_spread_has_the_exact_interval(right, name, rows):
    probs = torch.tensor([[0.9, 0.1]]).repeat(12, 1)
    found = evaluate_with_intervals(probs, torch.full((12,), int(not right)), resamples=200)[name]
    expected = stats.binomtest(rows if right else 0, rows).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))

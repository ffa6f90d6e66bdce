import math
from itertools import permutations

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from varlora.metrics import accuracy_at_coverage, aurc, auroc, confidence_and_correct, fpr95, risk_coverage


def test_agrees_with_the_oracle(scored):
    score, positive, expected = scored
    assert float(auroc(score, positive)) == pytest.approx(expected["auroc"], abs=1e-9)
    assert float(fpr95(score, positive)) == pytest.approx(expected["fpr_at_95_tpr"], abs=1e-9)


@pytest.mark.parametrize("num_levels", [2, 5, 1000])
@pytest.mark.parametrize("num_examples", [20, 101])
def test_agrees_with_scikit_learn_with_and_without_ties(num_examples, num_levels):
    generator = torch.Generator().manual_seed(num_examples)
    score = torch.randint(-num_levels, num_levels, (num_examples,), generator=generator).double() * 50
    positive = torch.randint(2, (num_examples,), generator=generator)
    assert float(auroc(score, positive)) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
    assert float(fpr95(score, positive)) == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_fpr95_counts_exactly():
    # Of 20 positives 19 are 95 %: the lowest one need not be found.
    score = torch.cat([torch.arange(20.0), torch.tensor([0.5, -1.0])])
    positive = torch.tensor([1] * 20 + [0, 0])
    assert float(fpr95(score, positive)) == 0
    # Of 21 all but one are 95.2 %, all but two are not.
    score = torch.cat([torch.arange(21.0), torch.tensor([1.5, -1.0])])
    assert float(fpr95(score, torch.tensor([1] * 21 + [0, 0]))) == 0.5


@pytest.mark.parametrize("metric", [auroc, fpr95])
def test_undefined_with_one_kind_only(metric):
    score = torch.tensor([0.1, 0.2])
    assert math.isnan(metric(score, torch.tensor([0, 0])))
    assert math.isnan(metric(score, torch.tensor([1, 1])))


def test_auroc_is_invariant_to_monotone_maps_and_mirrors(scored):
    score, positive, expected = scored
    assert float(auroc(score.exp(), positive)) == pytest.approx(expected["auroc"])
    assert float(auroc(-score, positive)) == pytest.approx(1 - expected["auroc"])
    assert float(auroc(score, 1 - positive)) == pytest.approx(1 - expected["auroc"])


def test_risk_of_ties_is_the_mean_over_their_orders():
    confidence = [0.9, 0.5, 0.5, 0.5, 0.2]
    correct = [1, 0, 1, 1, 0]
    curves = []
    for order in permutations(range(1, 4)):
        errors = [1 - correct[i] for i in (0, *order, 4)]
        curves.append([sum(errors[:k]) / k for k in range(1, 6)])
    expected = torch.tensor(curves, dtype=torch.float64).mean(0)
    for order in permutations(range(5)):
        _, risk = risk_coverage(torch.tensor(confidence)[list(order)], torch.tensor(correct)[list(order)])
        assert risk.tolist() == pytest.approx(expected.tolist())


def test_risk_curve_ends_at_the_error_rate(classified):
    probs, labels, expected = classified
    confidence, correct = confidence_and_correct(probs, labels)
    coverage, risk = risk_coverage(confidence, correct)
    assert coverage[[0, -1]].tolist() == [1 / 400, 1]
    assert float(risk[-1]) == pytest.approx(1 - expected["accuracy"])
    assert float(aurc(confidence, correct)) == pytest.approx(expected["aurc"], abs=1e-9)
    assert float(aurc(correct.double(), correct)) <= expected["aurc"] <= float(aurc(-correct.double(), correct))


def test_covered_examples_are_counted_exactly():
    # 55 of 100, where 0.55 * 100 is 55.00000000000001 in floating point.
    confidence = torch.linspace(1, 0.01, 100, dtype=torch.float64)
    correct = torch.arange(100) < 55
    assert float(accuracy_at_coverage(confidence, correct, coverage=0.55)) == 1
    assert float(accuracy_at_coverage(confidence, correct, coverage=0.551)) == pytest.approx(55 / 56)
    assert float(accuracy_at_coverage(confidence, correct, coverage=1)) == pytest.approx(0.55)


@pytest.mark.parametrize("metric", [auroc, fpr95, aurc])
def test_leading_dimensions_are_a_batch(metric, scored):
    score, positive, _ = scored
    score, positive = score[:300], positive[:300]
    batched = metric(score.unflatten(0, (3, 100)), positive.unflatten(0, (3, 100)))
    one_by_one = [metric(s, p) for s, p in zip(score.split(100), positive.split(100), strict=True)]
    assert batched.tolist() == pytest.approx([float(x) for x in one_by_one], abs=1e-15)


@pytest.mark.parametrize("coverage", [0, -0.1, 1.1])
def test_impossible_coverage_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage is"):
        accuracy_at_coverage(torch.tensor([0.5]), torch.tensor([1]), coverage=coverage)


@pytest.mark.parametrize("metric", [auroc, fpr95, aurc])
def test_refused_with_a_reason(metric):
    with pytest.raises(ValueError, match="no examples"):
        metric(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="same shape"):
        metric(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="1 values that are NaN or infinite"):
        metric(torch.tensor([0.0, math.inf]), torch.zeros(2))

import math

import pytest
import torch

from varlora.metrics import entropy, expected_entropy, mean_log_probs, mutual_information, predictive_entropy


@pytest.mark.parametrize("metric", [predictive_entropy, expected_entropy, mutual_information])
def test_agrees_with_the_oracle(samples_of_oracle, metric):
    log_probs, _, expected = samples_of_oracle
    assert metric(log_probs).tolist() == pytest.approx(expected[metric.__name__], abs=1e-9)
    assert metric(log_probs.float()).tolist() == pytest.approx(expected[metric.__name__], abs=1e-5)


def test_the_oracle_has_missing_choices(samples_of_oracle):
    log_probs, _, _ = samples_of_oracle
    assert log_probs.isneginf().any()


def test_a_missing_choice_has_no_uncertainty():
    log_probs = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log()
    padded = torch.cat([log_probs, torch.full((2, 1), -math.inf)], dim=-1)
    assert mean_log_probs(padded)[-1] == -math.inf
    for metric in (predictive_entropy, expected_entropy, mutual_information):
        assert float(metric(padded)) == float(metric(log_probs))


def test_extremes():
    uniform = torch.full((3, 4), 0.25, dtype=torch.float64).log()
    assert float(predictive_entropy(uniform)) == pytest.approx(math.log(4))
    assert float(mutual_information(uniform)) == 0
    disagreeing = torch.eye(4).log()
    assert float(predictive_entropy(disagreeing)) == pytest.approx(math.log(4))
    assert float(expected_entropy(disagreeing)) == 0
    assert float(mutual_information(disagreeing)) == pytest.approx(math.log(4))


def test_mutual_information_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1000, 1, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    assert mutual_information(one.expand(-1, 10, -1)).min() >= 0


def test_averaging_works_where_probabilities_underflow():
    log_probs = torch.tensor([[-1000.0, 0.0], [-1001.0, 0.0]], dtype=torch.float64)
    expected = -1000 + math.log((1 + math.exp(-1)) / 2)
    assert float(mean_log_probs(log_probs)[0]) == pytest.approx(expected, rel=1e-15)
    assert float(mean_log_probs(log_probs)[1]) == 0
    assert float(entropy(log_probs[0])) == 0

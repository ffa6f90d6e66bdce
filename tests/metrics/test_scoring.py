import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from varlora.metrics import accuracy, brier, confidence_and_correct, nll


def test_agree_with_scikit_learn(classified):
    probs, labels, _ = classified
    assert float(accuracy(probs, labels)) == accuracy_score(labels, probs.argmax(-1))
    classes = list(range(probs.shape[-1]))
    assert float(nll(probs.log(), labels)) == pytest.approx(log_loss(labels, probs, labels=classes), abs=1e-12)
    binary = (labels == 0).long()
    two = torch.stack([1 - probs[:, 0], probs[:, 0]], dim=-1)
    assert float(brier(two, binary)) == pytest.approx(2 * brier_score_loss(binary, probs[:, 0]), abs=1e-12)


def test_equal_probabilities_answer_with_the_lowest_class():
    confidence, correct = confidence_and_correct(torch.tensor([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]]), torch.tensor([1, 1]))
    assert correct.tolist() == [False, True]
    assert confidence.dtype == torch.float64


def test_brier_reaches_its_bounds():
    certain = torch.tensor([[1.0, 0.0, 0.0]])
    assert float(brier(certain, torch.tensor([0]))) == 0
    assert float(brier(certain, torch.tensor([2]))) == 2


@pytest.mark.parametrize("metric", [accuracy, brier, nll])
def test_leading_dimensions_are_a_batch(metric, classified):
    probs, labels, _ = classified
    values = probs.log() if metric is nll else probs
    batched = metric(values.unflatten(0, (4, 100)), labels.unflatten(0, (4, 100)))
    assert batched.tolist() == [float(metric(v, y)) for v, y in zip(values.split(100), labels.split(100), strict=True)]


@pytest.mark.parametrize("metric", [accuracy, brier, nll])
def test_unknown_labels_are_refused(metric):
    with pytest.raises(ValueError, match="1 of 2 labels are unknown"):
        metric(torch.full((2, 2), 0.5), torch.tensor([0, -100]))

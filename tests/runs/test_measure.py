"""What is measured of a run's predictions."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from varlora.prediction.prediction import Prediction
from varlora.runs.folder import CompletionScores
from varlora.runs.measure import measure


def prediction(rows: int, *, seed: int, label: int | None = None, draws: int = 3, spread: float = 1.0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(rows, draws, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (rows,), generator=generator) if label is None else torch.full((rows,), label)
    return Prediction(log_probs=logits.log_softmax(-1), labels=labels)


def test_out_of_scope_rows_are_told_from_the_tests_by_uncertainty() -> None:
    inside, outside = prediction(60, seed=0, spread=3.0), prediction(40, seed=1, label=-1)
    measured = measure({"test": {"samples": inside}, "ood": {"samples": outside}})["ood"]["samples"]
    log_probs = torch.cat([inside.log_probs, outside.log_probs])
    mean = log_probs.exp().mean(1)
    entropy = -(mean * mean.log()).sum(1)
    information = entropy + (log_probs.exp() * log_probs).sum(2).mean(1)
    truth = [0] * 60 + [1] * 40
    assert measured["auroc_entropy"] == pytest.approx(roc_auc_score(truth, entropy), abs=1e-12)
    assert measured["auroc_mutual_information"] == pytest.approx(roc_auc_score(truth, information), abs=1e-12)
    assert 0 <= measured["fpr95_entropy"] <= 1


def test_one_draw_has_no_mutual_information() -> None:
    splits = {
        "test": {"mean": prediction(20, seed=0, draws=1)},
        "ood": {"mean": prediction(9, seed=1, label=-1, draws=1)},
    }
    assert measure(splits)["ood"]["mean"].keys() == {"auroc_entropy", "fpr95_entropy"}


def test_out_of_scope_rows_without_a_test_split_have_no_measure() -> None:
    assert measure({"ood": {"mean": prediction(9, seed=1, label=-1)}}) == {"ood": {"mean": {}}}


def test_rows_without_a_class_do_not_count() -> None:
    whole = prediction(30, seed=2)
    some = Prediction(
        log_probs=torch.cat([whole.log_probs, prediction(5, seed=3).log_probs]),
        labels=torch.cat([whole.labels, torch.full((5,), -1)]),
    )
    assert measure({"test": {"mean": some}}) == measure({"test": {"mean": whole}})


def test_completions_are_averaged_over_draws_before_the_logarithm() -> None:
    scores = CompletionScores(
        log_likelihoods=torch.tensor([[math.log(0.1), math.log(0.3)], [math.log(0.5), math.log(0.5)]]).double(),
        num_tokens=torch.tensor([2, 3]),
        ids=("a", "b"),
    )
    total = -math.log(0.2) - math.log(0.5)
    assert measure({"test": {"samples": scores}})["test"]["samples"] == pytest.approx(
        {"nll_per_token": total / 5, "nll_per_row": total / 2, "perplexity": math.exp(total / 5)}, abs=1e-7
    )


def test_an_impossible_completion_has_infinite_perplexity() -> None:
    scores = CompletionScores(
        log_likelihoods=torch.tensor([[-torch.inf]]).double(), num_tokens=torch.tensor([1]), ids=("a",)
    )
    assert scores.metrics()["perplexity"] == math.inf

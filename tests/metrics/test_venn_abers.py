"""Venn–Abers tables against isotonic regressions fitted anew, the package venn-abers, and their proof."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from varlora.metrics.venn_abers import fit_venn_abers


def binary(rows: int, *, seed: int, ties: bool = False) -> tuple[Tensor, Tensor]:
    """Probabilities that are too sure, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logit = torch.randn(rows, generator=generator, dtype=torch.float64)
    if ties:
        logit = logit.round(decimals=1)
    labels = (torch.rand(rows, generator=generator) < logit.sigmoid()).long()
    second = (3 * logit).sigmoid()
    return torch.stack([1 - second, second], 1), labels


def fitted_anew(scores: np.ndarray, hits: np.ndarray, new: float, hit: int) -> float:  # type: ignore[type-arg]
    """The isotonic regression at a new score, of all rows and it; tied scores are one point."""
    scores, hits = np.append(scores, new), np.append(hits, hit)
    known, at = np.unique(scores, return_inverse=True)
    weights = np.bincount(at)
    fit = isotonic_regression(np.bincount(at, hits) / weights, sample_weight=weights.astype(float))
    return float(fit[np.searchsorted(known, new)])


@pytest.mark.parametrize("ties", [False, True])
def test_tables_are_regressions_that_are_fitted_anew(ties: bool) -> None:
    probs, labels = binary(60, seed=0, ties=ties)
    fitted = fit_venn_abers(probs, labels)
    scores, hits = probs[:, 1].numpy(), labels.numpy()
    new = np.concatenate([scores[:20], np.linspace(0.001, 0.999, 40)])
    found = fitted.intervals(torch.from_numpy(np.stack([1 - new, new], 1)))[:, 1]
    for score, (lower, upper) in zip(new, found.tolist(), strict=True):
        assert lower == pytest.approx(fitted_anew(scores, hits, score, 0), abs=1e-12)
        assert upper == pytest.approx(fitted_anew(scores, hits, score, 1), abs=1e-12)
        assert lower <= upper


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
def test_they_are_the_package_s() -> None:
    before = np.geterr()
    package = pytest.importorskip("venn_abers")
    np.seterr(**before)
    probs, labels = binary(200, seed=1, ties=True)
    new, _ = binary(100, seed=2)
    theirs = package.VennAbers()
    theirs.fit(probs.numpy(), labels.numpy())
    single, both = theirs.predict_proba(new.numpy())
    ours = fit_venn_abers(probs, labels)
    np.testing.assert_allclose(ours.intervals(new)[:, 1].numpy(), both, atol=1e-12)
    np.testing.assert_allclose(ours.probs(new).numpy(), single, atol=1e-12)


def test_one_of_the_two_is_calibrated_however_few_rows() -> None:
    """E[p of the true answer − whether it is the second class] = 0, over 1000 draws of 12 rows and a new one."""
    differences = []
    for seed in range(1000):
        probs, labels = binary(13, seed=seed)
        lower, upper = fit_venn_abers(probs[:-1], labels[:-1]).intervals(probs[-1:])[0, 1].tolist()
        right = int(labels[-1])
        differences.append((upper if right else lower) - right)
    mean = float(np.mean(differences))
    assert abs(mean) < 3 * float(np.std(differences)) / 1000**0.5
    assert float(np.mean([d for d in differences if d != 0])) != 0


def test_several_classes_sum_to_one_and_choices_that_are_not_offered_stay_out() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = (2 * torch.randn(100, 4, generator=generator, dtype=torch.float64)).softmax(-1)
    probs[::3, 3] = 0
    probs /= probs.sum(1, keepdim=True)
    labels = probs.argmax(1)
    fitted = fit_venn_abers(probs, labels)
    found = fitted.probs(probs)
    assert torch.allclose(found.sum(1), torch.ones(100, dtype=torch.float64))
    assert torch.equal(found == 0, probs == 0)
    assert bool((found[probs > 0] > 0).all())
    assert len(fitted.tables) == 4
    assert len(fitted.tables[3].scores) == 66


def test_edges() -> None:
    one = fit_venn_abers(torch.tensor([[0.3, 0.7]]), torch.tensor([1]))
    new = torch.tensor([[0.5, 0.5], [0.3, 0.7], [0.0, 1.0]])
    assert one.intervals(new)[:, 1].tolist() == [[0, 1], [0.5, 1], [0.5, 1]]
    more_classes_than_rows = fit_venn_abers(torch.full((2, 5), 0.2), torch.tensor([0, 0]))  # four are never seen
    found = more_classes_than_rows.probs(torch.full((1, 5), 0.2))
    assert bool((found > 0).all())
    assert int(found.argmax()) == 0
    with pytest.raises(ValueError, match="tables of 2 classes"):
        one.probs(torch.full((1, 3), 1 / 3))
    with pytest.raises(ValueError, match="label"):
        fit_venn_abers(torch.tensor([[0.3, 0.7]]), torch.tensor([2]))

"""Recalibration: taken where it is better than noise, by group where the group has the rows to say so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from varlora.metrics.recalibration import (
    WAYS,
    Temperatures,
    choose_recalibration,
    fit_recalibration,
    recalibrated,
)
from varlora.metrics.venn_abers import VennAbers


def rows_of(count: int, sharpness: list[float], *, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, 1, C) that are too sure by a factor of their own, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    factor = torch.tensor(sharpness, dtype=torch.float64)[:, None]
    return (factor * logits).log_softmax(-1)[:, None], labels


def test_each_group_gets_the_temperature_that_its_rows_ask_for() -> None:
    groups: list[str | None] = ["sure"] * 300 + ["calm"] * 300 + ["rare"] * 4 + [None] * 6
    sharpness = [3.0] * 300 + [0.5] * 300 + [3.0] * 4 + [1.0] * 6
    log_probs, labels = rows_of(610, sharpness, seed=0)
    fit = fit_recalibration("group_temperature", log_probs, labels, groups)
    assert isinstance(fit, Temperatures)
    assert fit.by_group["sure"] == pytest.approx(3, rel=0.25)
    assert fit.by_group["calm"] == pytest.approx(0.5, rel=0.25)
    assert "rare" not in fit.by_group  # four rows decide nothing
    out = recalibrated(fit, log_probs, groups).squeeze(1)
    assert torch.allclose(out[305], (log_probs[305, 0] / fit.common).log_softmax(-1)) is (groups[305] is None)
    choice = choose_recalibration(("temperature", "group_temperature"), log_probs, labels, groups)
    assert choice.taken == "group_temperature"
    assert "a temperature for each group from 610 rows" in choice.sentence


def test_groups_that_are_alike_have_the_common_temperature() -> None:
    """10 draws of 5 groups of 60 rows: the common T is kept in nearly all, and the common way is taken."""
    own, taken = 0, []
    groups: list[str | None] = [str(n % 5) for n in range(300)]
    for seed in range(10):
        log_probs, labels = rows_of(300, [2.0] * 300, seed=seed)
        fit = fit_recalibration("group_temperature", log_probs, labels, groups)
        assert isinstance(fit, Temperatures)
        own += len(fit.by_group)
        taken.append(choose_recalibration(("temperature", "group_temperature"), log_probs, labels, groups).taken)
    assert own <= 3  # of 50
    assert taken.count("temperature") >= 9


def test_calibrated_probabilities_are_kept() -> None:
    taken = [choose_recalibration(WAYS[::2], *rows_of(200, [1.0] * 200, seed=seed)).taken for seed in range(10)]
    assert taken.count(None) >= 9
    kept = choose_recalibration(WAYS[::2], *rows_of(200, [1.0] * 200, seed=0))
    assert kept.fitted is None
    assert kept.sentence.startswith("Probabilities as they are: no way is better by more than noise")


def test_venn_abers_is_taken_where_no_temperature_will_do() -> None:
    """The second class is said with p, and happens with p²."""
    generator = torch.Generator().manual_seed(0)
    second = torch.rand(2000, generator=generator, dtype=torch.float64)
    labels = (torch.rand(2000, generator=generator) < second.square()).long()
    log_probs = torch.stack([1 - second, second], 1).log()[:, None]
    choice = choose_recalibration(("temperature", "venn_abers"), log_probs, labels)
    assert choice.taken == "venn_abers"
    assert isinstance(choice.fitted, VennAbers)
    new = recalibrated(choice.fitted, log_probs, [None] * 2000).squeeze(1).exp()[:, 1]
    assert float((new - second.square()).abs().mean()) < 0.03


def test_draws_are_divided_one_by_one() -> None:
    log_probs = torch.randn(5, 3, 4, dtype=torch.float64).log_softmax(-1)
    out = recalibrated(Temperatures(common=2.0, rows=9), log_probs, [None] * 5)
    assert torch.allclose(out, (log_probs / 2).log_softmax(-1))
    assert recalibrated(None, log_probs, [None] * 5) is log_probs


def test_misuse() -> None:
    log_probs, labels = rows_of(30, [1.0] * 30, seed=0)
    with pytest.raises(ValueError, match="on 20 rows or more, and there are 5"):
        choose_recalibration(WAYS[:1], log_probs[:5], labels[:5])
    with pytest.raises(ValueError, match="needs the rows' groups"):
        choose_recalibration(WAYS, log_probs, labels)
    impossible = log_probs.clone()
    impossible[0, 0, labels[0]] = -torch.inf
    with pytest.raises(ValueError, match="has probability 0"):
        choose_recalibration(WAYS[:1], impossible, labels)

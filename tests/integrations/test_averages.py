"""The two averages, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from varlora.integrations.averages import average_choices, average_completions


def test_probabilities_are_averaged_not_their_logs() -> None:
    values = torch.tensor([[0.5, 0.1], [0.02, 0.04]], dtype=torch.float64).log()

    torch.testing.assert_close(average_completions(values).exp(), torch.tensor([0.3, 0.03], dtype=torch.float64))


def test_tiny_probabilities_survive() -> None:
    values = torch.tensor([[-2000.0, -2001.0]], dtype=torch.float64)

    assert float(average_completions(values)) == pytest.approx(-2000 + math.log((1 + math.exp(-1)) / 2), abs=1e-12)


def test_choices_divide_each_draws_total() -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 4, dtype=torch.float64) - 5
    found = average_choices(values, logit_temperature=1.5)

    torch.testing.assert_close(found.softmax(0), (values / 1.5).softmax(0).mean(1))
    torch.testing.assert_close(found.logsumexp(0), values.exp().sum(0).mean().log())


def test_one_draw_and_a_single_choice_stay_what_they_are() -> None:
    values = torch.randn(3, 4, dtype=torch.float64) - 5

    torch.testing.assert_close(average_choices(values[:, :1]), values[:, 0])
    torch.testing.assert_close(average_choices(values[:1]), average_completions(values[:1]))


def test_a_draw_that_finds_all_choices_impossible() -> None:
    values = torch.tensor([[0.3, 0.0], [0.1, 0.0]], dtype=torch.float64).log()
    found = average_choices(values)

    torch.testing.assert_close(found.softmax(0), torch.tensor([0.625, 0.375], dtype=torch.float64))
    torch.testing.assert_close(found.exp().sum(), torch.tensor(0.2, dtype=torch.float64))
    assert average_choices(values[:, 1:]).tolist() == [-math.inf, -math.inf]

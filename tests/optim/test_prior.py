"""What each prior keeps in the state, how a step renews it, and the δ it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from varlora.optim.adaptive_prior import initial_prior_precision, renewed_prior_precision
from varlora.optim.movement_prior import followed_prior_precision, movement_prior_precision
from varlora.optim.prior import prior_delta, prior_state, renew_prior_

GROUP: dict[str, Any] = {"ess": 200.0, "weight_decay": 0.0}


def test_a_fixed_prior_keeps_nothing_and_never_changes() -> None:
    group = {**GROUP, "prior": "fixed", "weight_decay": 0.3}
    state = prior_state(torch.ones(3), group)
    assert state == {}
    renew_prior_(state, torch.ones(3), group)
    assert (state, prior_delta(state, group)) == ({}, 0.3)


def test_an_adaptive_prior_stays_where_it_is_when_lambda_moves() -> None:
    group = {**GROUP, "prior": "adaptive"}
    mean = torch.full((3,), 0.5)
    state = {"hessian": torch.full((3,), 0.1), **prior_state(mean, group)}
    start = initial_prior_precision(mean)
    assert set(state) == {"hessian", "prior_precision"}
    assert state["prior_precision"] == start
    renew_prior_(state, mean, group)
    assert state["prior_precision"] == renewed_prior_precision(start, mean, state["hessian"], 200.0)
    for ess in (200.0, 50.0):
        assert float(ess * prior_delta(state, {**group, "ess": ess})) == pytest.approx(float(state["prior_precision"]))


def test_a_weight_decay_is_where_an_adaptive_prior_begins() -> None:
    state = prior_state(torch.ones(3), {**GROUP, "prior": "adaptive", "weight_decay": 0.3})
    assert state["prior_precision"].item() == pytest.approx(60.0)


def test_a_movement_prior_moves_with_lambda() -> None:
    group = {**GROUP, "prior": "movement", "prior_width": 3.0}
    begun = torch.tensor([1.0, -2.0])
    state = prior_state(begun, group)
    assert state["start"] is not begun
    torch.testing.assert_close(state["start"], begun)
    renew_prior_(state, begun + 0.1, group)
    begin = movement_prior_precision(begun, begun, 3.0)
    assert state["prior_precision"] == followed_prior_precision(begin, begun + 0.1, begun, 3.0)
    delta = prior_delta(state, group)
    assert float(delta) == pytest.approx(float(state["prior_precision"]) / 200)
    assert prior_delta(state, {**group, "ess": 7.0}) == delta

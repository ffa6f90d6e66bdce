"""What each prior keeps in the state, how a step renews it, and the δ it gives."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from varlora.ivon.adaptive_prior import initial_prior_precision, renewed_prior_precisions
from varlora.ivon.priors import PRIORS, PriorName, prior_of

GROUP: dict[str, Any] = {"ess": 200.0, "weight_decay": 0.0, "betas": (0.9, 0.999)}


def test_every_name_that_is_allowed_has_its_prior() -> None:
    assert tuple(PRIORS) == get_args(PriorName)
    assert [prior_of({"prior": name}).name for name in PRIORS] == list(PRIORS)


def test_a_fixed_prior_keeps_nothing_and_never_changes() -> None:
    group, prior = {**GROUP, "weight_decay": 0.3}, PRIORS["fixed"]
    state = prior.initial_state(torch.ones(3), group)
    assert state == {}
    prior.renew_([state], [torch.ones(3)], group)
    assert (state, prior.deltas([state], group)) == ({}, [0.3])


def test_an_adaptive_prior_stays_where_it_is_when_lambda_moves() -> None:
    group, prior = GROUP, PRIORS["adaptive"]
    mean = torch.full((3,), 0.5)
    state = {"hessian": torch.full((3,), 0.1), **prior.initial_state(mean, group)}
    start = initial_prior_precision(mean)
    assert set(state) == {"hessian", "prior_precision"}
    assert state["prior_precision"] == start
    prior.renew_([state], [mean], group)
    assert state["prior_precision"] == renewed_prior_precisions(start[None], [mean], [state["hessian"]], 200.0)[0]
    for ess in (200.0, 50.0):
        (delta,) = prior.deltas([state], {**group, "ess": ess})
        assert ess * delta == pytest.approx(float(state["prior_precision"]))


def test_a_weight_decay_is_where_an_adaptive_prior_begins() -> None:
    state = PRIORS["adaptive"].initial_state(torch.ones(3), {**GROUP, "weight_decay": 0.3})
    assert state["prior_precision"].item() == pytest.approx(60.0)


def test_a_falling_adaptive_prior_leaves_a_learned_h_positive_and_a_kept_one_alone() -> None:
    prior, mean = PRIORS["adaptive"], torch.full((2,), 10.0)
    for betas, moved in (((0.9, 0.999), True), ((0.9, 1.0), False)):
        group = {**GROUP, "betas": betas}
        state = {"hessian": torch.full((2,), -0.2), "prior_precision": torch.tensor(100.0)}
        prior.renew_([state], [mean], group)
        assert (state["hessian"] > -0.2).all() == moved
        (delta,) = prior.deltas([state], group)
        assert (state["hessian"] == -0.5 * delta).all() == moved

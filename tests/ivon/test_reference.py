"""The slow reference by hand, on one number; the fast optimizer is held to it in `test_optimizer.py`."""

from __future__ import annotations

import pytest
import torch

from varlora.ivon.reference import ReferenceState, reference_adam_step


def test_one_adam_step_by_hand() -> None:
    """m = 1, h = 1, δ = .5, λ = 4: σ = 1/√6. Loss w²/2 at draws ±ε with ε = √6: θ = 2 and 0."""
    one = torch.ones(1, dtype=torch.float64)
    start = ReferenceState(mean=one, momentum=0.2 * one, hessian=one, delta=0.5, second_moment=0.1 * one, step=1)
    noise = [6**0.5 * one, -(6**0.5) * one]
    options = {"lr": 0.1, "ess": 4.0, "beta1": 0.5, "beta2": 0.9, "adam_beta2": 0.75, "eps": 0.01}
    after = reference_adam_step(start, lambda w: w, noise, **options)
    # ĝ = (2 + 0)/2 + .5 = 1.5;  n̂g = (2·1 − 0)/2 = 1;  f = 6
    assert after.momentum.item() == pytest.approx(0.5 * 0.2 + 0.5 * 1.5)
    assert after.second_moment is not None
    assert after.second_moment.item() == pytest.approx(0.75 * 0.1 + 0.25 * 2.25)
    assert after.hessian.item() == pytest.approx(0.9 + 0.1 * 6 + 0.5 * 0.01 * 25 / 1.5)
    root = ((0.075 + 0.5625) / (1 - 0.75**2)) ** 0.5
    assert after.mean.item() == pytest.approx(1 - 0.1 * (0.85 / (1 - 0.25)) / (root + 0.01))
    adaptive = reference_adam_step(start, lambda w: w, noise, **options, decay_mean=False)
    assert adaptive.momentum.item() == pytest.approx(0.1 + 0.5)

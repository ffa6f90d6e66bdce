"""The adaptive prior: the closed form, where it starts, where it ends, and what it must not do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from varlora import IVON, NoiseController
from varlora.ivon.adaptive_prior import (
    PRIOR_STD_MIN,
    adaptive_priors,
    initial_prior_precision,
    renewed_prior_precisions,
)
from varlora.ivon.noise import ReplayedNoise

ORACLE = json.loads((Path(__file__).parent.parent / "data" / "adaptive_prior.json").read_text())


def zero_loss_steps(model: nn.Module, optimizer: IVON, steps: int) -> None:
    """Steps that move neither m nor (much) h."""
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        (0 * model(torch.ones(2, 20, dtype=dtype)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("case", ORACLE)
def test_it_is_the_closed_form(case: dict[str, Any]) -> None:
    m, h = (torch.tensor(case[k], dtype=torch.float64) for k in ("m", "h"))
    delta = torch.tensor([case["delta0"]], dtype=torch.float64)
    torch.testing.assert_close(
        adaptive_priors([m], [h], case["lam"], delta).item(), case["closed_form"], rtol=1e-9, atol=0
    )
    if case["fixed_point"] < 1:  # the third case takes 1e5 iterations
        for _ in range(3000):
            delta = adaptive_priors([m], [h], case["lam"], delta)
        torch.testing.assert_close(delta.item(), case["fixed_point"], rtol=1e-9, atol=0)


def test_a_step_goes_a_tenth_of_the_way_in_logarithms() -> None:
    m, h, start = [torch.full((4,), 0.5)], [torch.full((4,), 0.3)], torch.ones(1)
    target = 100.0 * adaptive_priors(m, h, 100.0, start / 100.0)
    moved = renewed_prior_precisions(start, m, h, 100.0).log() / target.log()
    torch.testing.assert_close(moved, torch.tensor([0.1]))


def test_tensors_learn_their_priors_together_as_each_alone() -> None:
    torch.manual_seed(0)
    means, deltas = [torch.randn(3, 5), torch.randn(7), torch.zeros(0)], torch.tensor([0.3, 0.01, 2.0])
    hessians = [torch.rand_like(m) for m in means]
    together = adaptive_priors(means, hessians, 50.0, deltas)
    for i, (m, h) in enumerate(zip(means[:2], hessians[:2], strict=True)):
        torch.testing.assert_close(together[i], 1 / (50.0 * (m.square() + 1 / (50.0 * (h + deltas[i]))).mean()))
    assert together[2] == math.inf, "no entries leave it to the bound"


@pytest.mark.parametrize("update", ["newton", "adam"])
def test_each_tensor_starts_at_its_own_closed_form(update: Any) -> None:
    """LoRA's A at its root mean square; B, which is zero, at the smallest standard deviation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 5, bias=False), nn.Linear(5, 3, bias=False))
    nn.init.zeros_(model[1].weight)
    optimizer = IVON(model.parameters(), lr=1e-3, ess=1e4, hess_init=1e-2, prior="adaptive", update=update)
    NoiseController(model, optimizer)
    model(torch.ones(2, 20))  # draws the first noise
    a, b = model[0].weight, model[1].weight
    assert optimizer.prior_precision(a) == pytest.approx(1 / a.square().mean().item())
    assert optimizer.prior_precision(b) == pytest.approx(1 / PRIOR_STD_MIN**2)
    for p in (a, b):
        expected = torch.full_like(p, 1e4 * 1e-2 + optimizer.prior_precision(p))
        torch.testing.assert_close(optimizer.precision(p), expected)


def test_a_weight_decay_is_where_it_starts_instead() -> None:
    model = nn.Linear(20, 5)
    optimizer = IVON(model.parameters(), lr=1e-3, ess=1e4, hess_init=1e-2, prior="adaptive", weight_decay=0.3)
    assert optimizer.prior_precision(model.weight) == pytest.approx(3000.0)


def test_a_tensor_without_entries_has_a_prior_too() -> None:
    assert initial_prior_precision(torch.zeros(0)).item() == pytest.approx(1 / PRIOR_STD_MIN**2)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_it_converges_to_the_minimiser_of_the_kl(start: float) -> None:
    """m and h are held still; δ must then reach the minimiser."""
    torch.manual_seed(0)
    model = nn.Linear(20, 5, bias=False, dtype=torch.float64)
    optimizer = IVON(
        model.parameters(),
        lr=1e-300,
        ess=1e4,
        hess_init=1e-3,
        betas=(0.9, 1.0),
        weight_decay=start,
        prior="adaptive",
    )
    NoiseController(model, optimizer)
    zero_loss_steps(model, optimizer, 400)
    m, h = model.weight.detach(), optimizer.state[model.weight]["hessian"]
    delta = optimizer.prior_precision(model.weight) / 1e4
    # the root of δ λ mean(m²) + mean(δ / (h + δ)) = 1, the KL's stationary point
    assert (delta * 1e4 * m.square().mean() + (delta / (h + delta)).mean()).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("start", [0.0, 1e-9])
def test_a_zero_tensor_neither_grows_without_bound_nor_kills_the_variance(start: float) -> None:
    """LoRA's B starts at zero; an uncapped δ would grow by h0 a step and take the variance to nothing."""
    model = nn.Linear(20, 5, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = IVON(model.parameters(), lr=1e-12, ess=1e5, hess_init=1e-3, weight_decay=start, prior="adaptive")
    NoiseController(model, optimizer)
    zero_loss_steps(model, optimizer, 500)
    smallest_variance = 1 / (1e5 * 1e-3 + 1 / PRIOR_STD_MIN**2)
    assert (1 / optimizer.precision(model.weight)).min().item() == pytest.approx(smallest_variance, rel=0.01)


@pytest.mark.parametrize("update", ["newton", "adam"])
def test_the_decay_of_the_mean_is_dropped(update: Any) -> None:
    model = nn.Linear(20, 5, bias=False)
    before = model.weight.detach().clone()
    optimizer = IVON(
        model.parameters(), lr=0.1, ess=1e4, hess_init=1e-3, weight_decay=1.0, prior="adaptive", update=update
    )
    NoiseController(model, optimizer)
    zero_loss_steps(model, optimizer, 3)
    assert torch.equal(model.weight, before)


def test_a_falling_prior_keeps_the_precision_positive() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    options = {"lr": 0.1, "ess": 100.0, "hess_init": 1e-4, "betas": (0.9, 0.5), "weight_decay": 10.0}
    optimizer = IVON(model.parameters(), **options, prior="adaptive")
    NoiseController(model, optimizer, seed=0)
    for _ in range(60):
        loss = -(model(torch.ones(4, 3)) ** 2).mean()  # negative curvature drives h below zero
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for p in model.parameters():
            assert (optimizer.precision(p) > 0).all()
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_steps_follow_a_lambda_that_moves_between_them(factor: float) -> None:
    """20 steps against the equations, λ moved after the tenth; where h is below 0 a smaller δ must not undo h + δ."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    noise = [torch.randn(2, 3, dtype=torch.float64) for _ in range(20)]
    given = {"lr": 0.05, "ess": 50.0, "hess_init": 0.05, "betas": (0.9, 0.8), "prior": "adaptive"}
    optimizer = IVON(model.parameters(), **given, clip_radius=1.0)  # type: ignore[arg-type]
    NoiseController(model, optimizer, ReplayedNoise({"weight": noise}))
    curvature = torch.tensor([[-0.3, 0.2, 0.5], [-0.5, -0.1, 1.0]], dtype=torch.float64)
    m = model.weight.detach().clone()
    g, h, precision = torch.zeros_like(m), torch.full_like(m, 0.05), initial_prior_precision(m)
    ess, kept = 50.0, 0
    for step, eps in enumerate(noise):
        if step == 10:
            ess *= factor
            optimizer.param_groups[0]["ess"] = ess
        delta = precision / ess
        kept += int((h < -delta / 2).sum())
        h = h.maximum(-delta / 2)
        sample = m + eps / (ess * (h + delta)).sqrt()
        gradient = curvature * sample
        f = ess * (h + delta) * (sample - m) * gradient
        g = 0.9 * g + 0.1 * gradient
        h = 0.8 * h + 0.2 * f + 0.5 * 0.2**2 * (h - f) ** 2 / (h + delta)
        target = (1 / (m.square() + 1 / (ess * (h + delta))).mean()).clamp(max=1 / PRIOR_STD_MIN**2)
        precision = precision.log().lerp(target.log(), 0.1).exp()
        h = h.maximum(-precision / ess / 2)
        m = m - 0.05 * (g / (1 - 0.9 ** (step + 1)) / (h + precision / ess)).clamp(-1, 1)

        (curvature * model(torch.eye(3, dtype=torch.float64)).T.square()).sum().div(2).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(model.weight.detach(), m, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(optimizer.state[model.weight]["hessian"], h, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(optimizer.precision(model.weight), ess * h + precision, rtol=1e-6, atol=1e-9)
    assert optimizer.skipped_steps == 0
    assert bool(kept) == (factor > 1), "a λ that grows finds an h that its smaller δ would not carry"

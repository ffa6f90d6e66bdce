"""What the default's variance is: one number for all that trains, which knows the fit and no curvature."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from varlora import IVON, IVONConfig, NoiseController, posterior_of

N, STEPS = 200, 150


def trained(recipe: IVONConfig, *, scale: float = 1.0) -> tuple[nn.Module, IVON]:
    """A regression with unit noise, ½ (y − f)² a row, on inputs of the given scale: Σ xᵀx/N is about scale² · 1."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    x = scale * torch.randn(N, 4)
    y = x @ torch.randn(4, 2) / scale + torch.randn(N, 2)
    optimizer = IVON(model.parameters(), **recipe.optimizer_kwargs())
    noise = NoiseController(model, optimizer, seed=0)
    for _ in range(STEPS):
        loss = 0.5 * (model(x) - y).square().sum(1).mean()
        noise.observe_loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    noise.detach()
    return model, optimizer


def test_the_default_has_one_variance_for_all_weights_and_a_published_recipe_one_for_each() -> None:
    model, optimizer = trained(IVONConfig(lr=0.05, ess=100.0 * N))
    variance = posterior_of(model, optimizer).variance
    assert len(torch.cat([v.flatten() for v in variance.values()]).unique()) == 1
    published = IVONConfig(recipe="cong2024", lr=0.03, ess=1e4)
    model, optimizer = trained(published)
    assert [len(v.unique()) for v in posterior_of(model, optimizer).variance.values()] == [2, 8]


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_a_kept_hessian_is_off_by_the_curvature(scale: float) -> None:
    """docs/method.md: at inputs of scale c the exact variance is 1/(N c²), that of h0 is 1/N, whatever λ/N says."""
    model, optimizer = trained(IVONConfig(lr=0.05, ess=100.0 * N, hess_init=0.01, variance="hessian"), scale=scale)
    found = posterior_of(model, optimizer).variance["weight"]
    assert float((found * N * scale**2).mean()) == pytest.approx(scale**2, rel=0.05)
